"""Micro-batches by tokens: a budget of padded tokens, never a number of rows.

A batch of responses is cut into micro-batches of similar length, each trimmed of the padding it does not need, so that
`rows × (longest prompt + longest completion)` stays within a budget. Rows that cannot contribute are left out. The
weight of each micro-batch makes the sum of its gradients the gradient of the whole batch (`micro_batch_weight`).

Shapes: B rows, P prompt tokens (padded left), C completion tokens (padded right).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.errors import ConfigError
from stages.memory_plan import CPU_TOKENS, bytes_per_token, fused_head_bytes

Batch = dict[str, Any]

# Loss types of TRL by what their mean runs over inside one call of its loss function.
_MEAN_OVER_ROWS = ("grpo", "sapo", "luspo", "dr_grpo")
_MEAN_OVER_TOKENS = ("bnpo",)
_GLOBAL_MEAN = ("dapo", "cispo", "vespo")


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a batch, trimmed to the last `prompt_width` and the first `completion_width` columns."""

    rows: tuple[int, ...] = ()
    prompts: frozenset[int] = frozenset()
    prompt_width: int = 0
    completion_width: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens to compute, padding included; a prompt that several rows share counts once."""
        return len(self.prompts) * self.prompt_width + len(self.rows) * self.completion_width

    def with_row(self, row: int, prompt: int, prompt_length: int, completion_length: int) -> "MicroBatch":
        return MicroBatch(
            (*self.rows, row),
            self.prompts | {prompt},
            max(self.prompt_width, prompt_length),
            max(self.completion_width, completion_length),
        )


def plan(
    prompt_lengths: list[int], completion_lengths: list[int], token_budget: int, prompts: list[int] | None = None
) -> Iterator[MicroBatch]:
    """Cuts rows into micro-batches within the budget, longest first; a single row may exceed it.

    `prompts[i]` names the prompt of row i where rows with the same prompt compute it once; None = they do not. A
    completion length of 0 leaves the row out.
    """
    sort_lengths = (
        completion_lengths if prompts else [p + c for p, c in zip(prompt_lengths, completion_lengths, strict=True)]
    )
    names = prompts or list(range(len(prompt_lengths)))
    kept = [i for i, length in enumerate(completion_lengths) if length > 0]
    micro = MicroBatch()
    for i in sorted(kept, key=lambda i: (-sort_lengths[i], names[i])):
        row = (i, names[i], prompt_lengths[i], completion_lengths[i])
        wider = micro.with_row(*row)
        if micro.rows and wider.num_tokens > token_budget:
            yield micro
            wider = MicroBatch().with_row(*row)
        micro = wider
    if micro.rows:
        yield micro


def plan_lines(
    prompt_lengths: list[int], completion_lengths: list[int], token_budget: int, prompts: list[int]
) -> Iterator[MicroBatch]:
    """Like `plan`, for rows that lie end to end: no padding counts, and rows with one prompt stay together."""
    micro, num_tokens = MicroBatch(), 0
    for i in sorted((i for i, length in enumerate(completion_lengths) if length > 0), key=lambda i: prompts[i]):
        row = (i, prompts[i], prompt_lengths[i], completion_lengths[i])
        more = completion_lengths[i] + (0 if prompts[i] in micro.prompts else prompt_lengths[i])
        if micro.rows and num_tokens + more > token_budget:
            yield micro
            micro, num_tokens, more = MicroBatch(), 0, prompt_lengths[i] + completion_lengths[i]
        micro, num_tokens = micro.with_row(*row), num_tokens + more
    if micro.rows:
        yield micro


def plan_batch(
    batch: Batch,
    token_budget: int,
    kept_rows: torch.Tensor | None = None,
    share_prompts: bool = False,
    end_to_end: bool = False,
) -> list[MicroBatch]:
    """The plan for a batch of TRL's GRPO tensors; `kept_rows` (B,) bool names the rows worth computing.

    `end_to_end`: the rows of a micro-batch will lie in one line and share their prompts.
    """
    completion_lengths = batch["completion_mask"].sum(1)
    if kept_rows is not None:
        completion_lengths = completion_lengths * kept_rows
    shares = share_prompts or end_to_end
    prompts = same_prompts(batch["prompt_ids"], batch["prompt_mask"])[1].tolist() if shares else None
    lengths = batch["prompt_mask"].sum(1).tolist(), completion_lengths.tolist()
    if end_to_end:
        return list(plan_lines(*lengths, token_budget, prompts or []))
    return list(plan(*lengths, token_budget, prompts))


def same_prompts(prompt_ids: torch.Tensor, prompt_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first row of each different prompt, (U,), and for each row which of them it has, (B,)."""
    distinct, which = torch.cat([prompt_ids, prompt_mask], 1).unique(dim=0, return_inverse=True)
    rows = torch.arange(len(which), device=which.device)
    first = which.new_full((len(distinct),), len(which)).scatter_reduce(0, which, rows, "amin")
    return first, which


def cut(batch: Batch, micro: MicroBatch) -> Batch:
    """The rows of a micro-batch, without the padding columns none of them needs; scalars pass through."""
    rows = torch.tensor(micro.rows, device=batch["completion_mask"].device)
    width = batch["completion_mask"].shape[1]

    def take(name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            return value
        chosen = value[rows]
        if name.startswith("prompt_"):
            return chosen[:, chosen.shape[1] - micro.prompt_width :]
        is_per_token = chosen.ndim > 1 and chosen.shape[1] == width
        return chosen[:, : micro.completion_width] if is_per_token else chosen

    return {name: take(name, value) for name, value in batch.items()}


def micro_batch_weight(loss_type: str, batch: Batch, micro: Batch) -> float:
    """What the loss of a micro-batch counts in the loss of the whole batch, so that the gradients add up to its own."""
    if loss_type in _MEAN_OVER_ROWS:
        return micro["completion_mask"].shape[0] / batch["completion_mask"].shape[0]
    if loss_type in _MEAN_OVER_TOKENS:
        whole = batch.get("process_tokens", batch["completion_mask"].sum())  # of all processes, the mean
        return float(micro["completion_mask"].sum() / whole.clamp(min=1))
    if loss_type in _GLOBAL_MEAN:
        return 1.0
    raise ConfigError(f"loss_type '{loss_type}' is not one that can be cut into micro-batches exactly")


def automatic_budget(model: Any, device: torch.device, checkpointing: bool) -> int:
    """Tokens of one micro-batch (forward and backward) that this machine has room for.

    On a CPU a fixed number, so that a run is the same on every machine, lowered only where memory is short; on CUDA
    four fifths of what is free now, over an estimate of what a token needs.
    """
    config = model.config.get_text_config()
    hidden, inner = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    bytes_per_number = 2 if device.type == "cuda" else 4
    needed = bytes_per_token(hidden, inner, config.num_hidden_layers, checkpointing, bytes_per_number)
    if device.type != "cuda":
        return lowered(max(256, min(CPU_TOKENS, int(machine_bytes() * 0.1) // needed)))
    free, _ = torch.cuda.mem_get_info(device)
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = free + reusable - fused_head_bytes(config.vocab_size)
    return lowered(max(256, int(room * 0.8) // needed))


def lowered(token_budget: int) -> int:
    """A token budget times R1_TOKEN_SHARE, which the runner sets when a stage ran out of memory."""
    return max(1, int(token_budget * float(os.environ.get("R1_TOKEN_SHARE", 1))))


def machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
