"""Next-token training of a small language model from nothing: tokenizer, packing, loop.

Reads documents as text, makes a Llama model and a byte-level BPE tokenizer. A plain torch loop, because
there is nothing here for TRL to do. The paper starts from DeepSeek-V3-Base (section 2.2); this makes the
mini scale's stand-in. Used by `stages.pretrain`; runs without the pipeline too.

Axes: R rows of a pack, B rows of a batch, T tokens of a row.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_model, save_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.errors import ConfigError
from stages.engines.checkpoints import folder_of, in_the_making, newest_whole, step_of
from stages.engines.stopping import stop_on_signals

END_OF_TEXT = "<|endoftext|>"
IGNORED = -100
MIN_LEARNING_RATE = 0.05
"""Where the cosine ends, as a share of the highest learning rate."""

Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Optimisation:
    """`batch_rows` packed rows a step, AdamW, linear warm-up and a cosine down to one twentieth."""

    num_steps: int
    batch_rows: int
    learning_rate: float
    warmup_steps: int = 100
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0
    dtype: str = "float32"
    log_steps: int = 50
    save_steps: int = 500

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of the update that follows `step` finished ones."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        low = MIN_LEARNING_RATE
        return self.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Pack:
    """Documents side by side in rows (R, T). `positions` start at 0 with each, which bounds attention."""

    ids: torch.Tensor
    positions: torch.Tensor
    padding: int
    end_id: int

    @property
    def labels(self) -> torch.Tensor:
        """What to predict: every token but the first of a document and the padding."""
        return self.ids.masked_fill((self.positions == 0) | (self.ids == self.padding), IGNORED)

    def batch(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Model inputs (B, T) for the given rows; padding is fed as end of text and never predicted."""
        part = replace(self, ids=self.ids[rows].long(), positions=self.positions[rows].long())
        ids_BT = part.ids.masked_fill(part.ids == self.padding, self.end_id)
        return {"input_ids": ids_BT, "position_ids": part.positions, "labels": part.labels}


def train_tokenizer(
    texts: Sequence[str], vocab_size: int, whole: Sequence[str], max_length: int
) -> PreTrainedTokenizerFast:
    """Byte-level BPE; each digit and each string of `whole` is one ordinary token, and any text encodes."""
    tokenizer = Tokenizer(models.BPE())
    digits_then_bytes = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(digits_then_bytes)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(whole),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_without(text, whole) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in whole])
    end = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **end)


def _without(text: str, whole: Sequence[str]) -> str:
    """`text` without the strings that get a token anyway, so that no merge is spent on their letters."""
    for part in whole:
        text = text.replace(part, "")
    return text


def pack(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, sequence_length: int) -> Pack:
    """Encodes every text, ends it with the end-of-text token, fills rows in order; longer texts are cut."""
    padding = len(tokenizer)
    rows: list[NDArray[np.int32]] = []
    starts: list[NDArray[np.int32]] = []
    ids_T, positions_T, used = _empty_row(sequence_length, padding)
    for ids in _encoded(texts, tokenizer, sequence_length):
        if used + len(ids) > sequence_length:
            rows.append(ids_T)
            starts.append(positions_T)
            ids_T, positions_T, used = _empty_row(sequence_length, padding)
        ids_T[used : used + len(ids)] = ids
        positions_T[used:] = np.arange(sequence_length - used)
        used += len(ids)
    ids_RT, positions_RT = np.stack([*rows, ids_T]), np.stack([*starts, positions_T])
    return Pack(torch.from_numpy(ids_RT), torch.from_numpy(positions_RT), padding, tokenizer.eos_token_id)


def _empty_row(length: int, padding: int) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    return np.full(length, padding, np.int32), np.arange(length, dtype=np.int32), 0


def _encoded(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, length: int) -> Iterator[list[int]]:
    end_id = tokenizer.eos_token_id
    for start in range(0, len(texts), 10_000):  # encodings are large objects: a few at a time
        for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts[start : start + 10_000]):
            yield [*encoding.ids[: length - 1], end_id]


def new_model(architecture: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama model with tied embeddings and random weights."""
    end_id = tokenizer.eos_token_id
    ends = {"bos_token_id": end_id, "eos_token_id": end_id, "pad_token_id": end_id}
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**architecture, "tie_word_embeddings": True}, **ends))
    model.generation_config = GenerationConfig(**ends, do_sample=True, temperature=1.0)
    return model


def with_layers(model: Any, kept: Sequence[int] | None) -> Any:
    """The model with only these of its layers, in this order, in place; ConfigError for one that it has not."""
    layers = model.model.layers
    if missing := [i for i in kept or () if not 0 <= i < len(layers)]:
        raise ConfigError(
            f"keep_layers: the model has layers 0 to {len(layers) - 1}, so there is no layer {missing[0]}"
        )
    if kept is not None:
        model.model.layers = torch.nn.ModuleList(layers[i] for i in kept)
        model.config.num_hidden_layers = len(kept)
        if types := getattr(model.config, "layer_types", None):
            model.config.layer_types = [types[i] for i in kept]
        for position, layer in enumerate(model.model.layers):
            layer.self_attn.layer_idx = position
    return model


def train(model: LlamaForCausalLM, text: Pack, how: Optimisation, checkpoints: Path, log: Log) -> dict[str, float]:
    """Trains `model` in place from the newest checkpoint on; returns the last logged loss and speed.

    Raises Interrupted after a signal, when the step was finished and saved.
    """
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA: these weights are kept in float32
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(_decayed_and_not(model, how.weight_decay), betas=(0.9, 0.95), fused=True)
    text = replace(text, ids=text.ids.to(device), positions=text.positions.to(device))
    meter = _Meter(text.ids.shape[1] * how.batch_rows)
    done = resume(model, optimizer, meter, checkpoints)
    with stop_on_signals() as stop:
        for step, rows in enumerate(batches(len(text.ids), how.batch_rows, how.seed, skip=done), start=done + 1):
            if step > how.num_steps:
                break
            meter.add(*_update(model, optimizer, text.batch(rows.to(device)), step - 1, how))
            if step % how.log_steps == 0 or step == how.num_steps:
                log(step, meter.read() | {"learning_rate": how.learning_rate_at(step - 1)})
            if step < how.num_steps and (step % how.save_steps == 0 or stop.requested):
                save_checkpoint(model, optimizer, meter, checkpoints, step)
            if step < how.num_steps and stop.requested:
                raise stop.error(step)
    return {"loss": meter.last_loss, "tokens_per_s": meter.last_speed}


def _update(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    step: int,
    how: Optimisation,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimiser step; returns loss and gradient norm, still on the device."""
    for group in optimizer.param_groups:
        group["lr"] = how.learning_rate_at(step)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=how.dtype == "bfloat16"):
        loss = model(**batch, use_cache=False).loss  # no attention_mask: the positions bound each document
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), how.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm.detach()


def _decayed_and_not(model: LlamaForCausalLM, weight_decay: float) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def batches(num_rows: int, batch_rows: int, seed: int, skip: int = 0) -> Iterator[torch.Tensor]:
    """Row numbers (B,) without end: every epoch in its own order, which only seed and epoch decide."""
    batch_rows = min(batch_rows, num_rows)
    per_epoch = num_rows // batch_rows
    epoch, first = divmod(skip, per_epoch)
    while True:
        order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        yield from order[first * batch_rows : per_epoch * batch_rows].split(batch_rows)
        epoch, first = epoch + 1, 0


class _Meter:
    """Means since the last reading. Values stay on the device until then, so that no step waits for one."""

    def __init__(self, tokens_per_step: int) -> None:
        self._tokens = tokens_per_step
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._since = time.perf_counter()
        self.last_loss = self.last_speed = math.nan

    def add(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        self.seen.append((loss, norm))

    def read(self) -> dict[str, float]:
        loss, norm = (torch.stack(values).mean().item() for values in zip(*self.seen, strict=True))
        seconds = time.perf_counter() - self._since
        self.last_loss, self.last_speed = loss, len(self.seen) * self._tokens / seconds
        self.seen, self._since = [], time.perf_counter()
        return {"loss": loss, "grad_norm": norm, "tokens_per_s": self.last_speed}


def save_checkpoint(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, meter: _Meter, folder: Path, step: int
) -> None:
    """Writes `folder/checkpoint-STEP`, sealed when it is whole, and drops older ones."""
    target = folder_of(folder, step)
    shutil.rmtree(target, ignore_errors=True)
    with in_the_making(target):
        target.mkdir(parents=True)
        save_model(model, str(target / "model.safetensors"))
        torch.save(optimizer.state_dict(), target / "optimizer.pt")
        torch.save(meter.seen, target / "meter.pt")


def resume(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, meter: _Meter, folder: Path) -> int:
    """Loads the newest whole checkpoint, if there is one; returns the number of finished steps."""
    found = newest_whole(folder)
    if found is None:
        return 0
    load_model(model, str(found / "model.safetensors"))
    # weights_only: tensors and plain containers are read, never arbitrary pickled objects
    optimizer.load_state_dict(torch.load(found / "optimizer.pt", weights_only=True))
    meter.seen = torch.load(found / "meter.pt", weights_only=True, map_location=model.device)
    return step_of(found)
