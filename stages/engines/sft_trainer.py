"""TRL's SFTTrainer with what a step of ours needs: micro-batches by tokens, packing, held-out loss, sample texts.

Every number of `metrics.jsonl` stands in one row a step; `eval_loss` is there at every evaluation point. Sample
texts go to `samples.jsonl`: a few prompts, answered greedily by the model in training. Evaluation draws no random
number and changes no state, so it does not change what is learned, and a resumed run equals an uninterrupted one.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.card import Row
from pipeline.stage import read_jsonl
from stages.engines import ranks
from stages.engines.core import core_of, scattered
from stages.engines.flat_rows import flat_demos
from stages.engines.models import peak_memory_gib, quiet
from stages.engines.packing import keeps_demos_apart, pack, packed
from stages.engines.samplers import Sampling, TransformersSampler
from stages.engines.sft_demos import Demo
from stages.engines.token_budget import MicroBatch, plan, plan_lines
from stages.engines.trainers import PipelineTrainer

with quiet():
    from trl import SFTTrainer
    from trl.trainer.utils import FusedCausalLMOutput

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What is looked at while training: at every `every`-th step and at the last one."""

    every: int
    held_out: list[Demo]
    rows: list[Row]
    """The demos whose prompts are answered for `samples.jsonl`."""
    prompts: list[str]
    sampling: Sampling


class TokenBudgetSFTTrainer(PipelineTrainer, SFTTrainer):
    """TRL's loss over a step's demos, in micro-batches by tokens; the gradient is that of the whole step."""

    def __init__(
        self,
        token_budget: int | None,
        packing: bool,
        evaluation: Evaluation,
        memory_gb: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.token_budget = token_budget
        self.core = core_of(self.model, self.accelerator.device, self.args.optim, memory_gb)
        self.packs = packing and not self.core and keeps_demos_apart(self.model)
        self.evaluation = evaluation
        self._step_began = time.perf_counter()
        self._num_tokens = 0

    # --- a step ------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over one step's demos; returns the loss, detached."""
        model.train()
        batch = self._prepare_inputs(inputs)
        return self.over_ranks(model, lambda bare: self._accumulate(bare, batch, num_items_in_batch))

    def _accumulate(self, model: Any, batch: Batch, num_items_in_batch: Any) -> torch.Tensor:
        """TRL divides each micro-batch's loss by the tokens of the whole step, so the parts simply add up."""
        total = torch.zeros((), device=self.accelerator.device)
        parts = self._parts(model, batch)
        if self.core:
            self.core.begin()
        for part in parts:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(self._scorer(model), part, num_items_in_batch=num_items_in_batch)
            self.accelerator.backward(loss)
            total += loss.detach()
        self._num_tokens = int(batch["attention_mask"].sum())
        return total

    def _parts(self, model: Any, batch: Batch) -> Iterator[Batch]:
        """The micro-batches of a padded batch, each within the token budget."""
        lengths = batch["attention_mask"].sum(1).tolist()
        if self.core:
            planned = self.core.plan_step(max(lengths), sum(lengths)).tokens
            micros = plan_lines(
                [0] * len(lengths), lengths, min(planned, self.token_budget or planned), [0] * len(lengths)
            )
            return self._cut(batch, micros)
        budget = self.budget(model)
        if self.packs:
            rows = pack(lengths, width=max(lengths))
            height = max(1, budget // max(lengths))
            return (packed(batch, lengths, rows[i : i + height]) for i in range(0, len(rows), height))
        return self._cut(batch, plan([0] * len(lengths), lengths, budget))

    def _cut(self, batch: Batch, micros: Iterable[MicroBatch]) -> Iterator[Batch]:
        for micro in micros:
            chosen = torch.tensor(micro.rows, device=batch["input_ids"].device)
            yield {name: value[chosen, : micro.completion_width] for name, value in batch.items()}

    def _scorer(self, model: Any) -> Any:
        """What TRL's loss asks for log-probabilities: the core where there is one, else the model."""
        return self._score_line if self.core else model

    def _score_line(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor, **_: Any) -> FusedCausalLMOutput:
        """The core's answer in the shape of TRL's fused head: of each token but the first, zero where not learned."""
        assert self.core
        line = flat_demos(input_ids, labels, attention_mask.sum(1).tolist())
        shifted = labels[:, 1:]
        terms = [scattered(found, line, shifted) for found in self.core.terms(line)]
        return FusedCausalLMOutput(log_probs=terms[0], entropy=terms[1], is_top1=terms[2], label_mask=shifted != -100)

    # --- what is looked at while training --------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One row of `metrics.jsonl` for each step."""
        measured, self._metrics["train"] = self._metrics["train"], type(self._metrics["train"])(list)
        if "grad_norm" not in logs:  # the summary at the end of training
            return
        step, seconds = self.state.global_step, time.perf_counter() - self._step_began
        row = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate")}
        seen = {name: sum(measured[name]) / len(measured[name]) for name in ("entropy", "mean_token_accuracy")}
        seen = ranks.together(seen | {"sampled_tokens": self._num_tokens})
        row |= {"step_seconds": seconds, "tokens_per_s": seen.pop("sampled_tokens") / seconds, **seen}
        row |= peak_memory_gib()
        if step % self.evaluation.every == 0 or step == self.args.max_steps:
            row |= self._evaluate_now(step) if ranks.is_main() else {}
        self.work.log(step, row)
        self._step_began = time.perf_counter()

    def _evaluate_now(self, step: int) -> dict[str, float]:
        """`eval_loss`, where demos are held out; writes the sample texts."""
        if self.core:
            self.core.rest()
        self._write_samples(step)
        return {"eval_loss": self.held_out_loss()} if self.evaluation.held_out else {}

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss of a learned token over the held-out demos."""
        demos, size = self.evaluation.held_out, self.args.per_device_train_batch_size
        num_learned = sum(label != -100 for demo in demos for label in demo.labels[1:])
        total = 0.0
        self.model.eval()
        for start in range(0, len(demos), size):
            batch = self._prepare_inputs(self.data_collator([demo.features for demo in demos[start : start + size]]))
            for part in self._parts(self.model, batch):
                with self.compute_loss_context_manager(), ranks.alone(self.accelerator):
                    total += float(self.compute_loss(self._scorer(self.model), part)) * int(
                        (part["labels"][:, 1:] != -100).sum()
                    )
        self.model.train()
        self._metrics["eval"].clear()
        return total / num_learned

    def _write_samples(self, step: int) -> None:
        """Adds this step's texts to `samples.jsonl`; those of later steps, left by a cut-off run, go."""
        seen = self.evaluation
        if not seen.rows:
            return
        sampler = TransformersSampler(self.accelerator.unwrap_model(self.model), self.processing_class)
        with self.compute_loss_context_manager():
            completions = [found for [found] in sampler.generate(seen.prompts, 1, seen.sampling)]
        file = self.work.path / "samples.jsonl"
        kept = [row for row in read_jsonl(file) if row["step"] < step] if file.exists() else []
        new = [
            {"step": step, "id": row["id"], "prompt": row["prompt"], "demo": row["response"]}
            | {"completion": completion.text, "truncated": completion.truncated}
            for row, completion in zip(seen.rows, completions, strict=True)
        ]
        self.work.write_jsonl(file.name, kept + new)
