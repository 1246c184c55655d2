"""TRL's GRPO loss of a whole batch, in micro-batches within a token budget.

TRL keeps the loss types, clipping, importance-sampling levels and KL. The gradients of the micro-batches add up to
exactly that of the whole batch; rows that cannot contribute (no advantage, no KL term) are left out, and a prompt is
computed once for all its responses.

Shapes: B rows, C completion tokens; b rows of a micro-batch.
"""

import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from stages.engines import ranks
from stages.engines.core import core_of, scattered
from stages.engines.curves import training_curves
from stages.engines.engine_correction import importance_ratio
from stages.engines.flat_rows import flat_completions
from stages.engines.shared_prompt import completion_logprobs, has_full_attention
from stages.engines.token_budget import Batch, MicroBatch, cut, micro_batch_weight, plan_batch, same_prompts
from stages.engines.trainers import PipelineTrainer

LogpsAndEntropies = tuple[Tensor, Tensor | None, Tensor | None]

# Terms of TRL's loss that need the whole batch at once, so they cannot be cut into micro-batches.
NEED_WHOLE_BATCH = ("top_entropy_quantile", "entropy_coef", "use_adaptive_entropy")


class TokenBudgetLoss(PipelineTrainer, GRPOTrainer):
    """The part of a GRPO trainer that makes gradients of a batch, wherever the batch comes from."""

    def __init__(
        self, token_budget: int | None, corrects_engine: bool, memory_gb: float | None = None, **options: Any
    ) -> None:
        """`corrects_engine`: the responses come from an engine whose log-probabilities are not quite the model's."""
        super().__init__(**options)
        self.token_budget = token_budget
        self.core = core_of(self.model, self.accelerator.device, self.args.optim, memory_gb)
        # Recomputed layers cannot write to a cache.
        self._shares_prompts = not self.args.gradient_checkpointing and has_full_attention(self.model)
        self._corrects_engine = corrects_engine
        self._part: Batch = {}
        self._step_metrics: dict[str, float] = {}

    # --- the gradient ------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One batch: sample when it is time, then forward and backward in micro-batches. Returns the loss, detached."""
        model.train()
        batch = self._prepare_inputs(inputs)
        began = time.perf_counter()
        batch["process_tokens"] = ranks.mean(batch["completion_mask"].sum().float())
        loss = self.over_ranks(model, lambda bare: self._accumulate(bare, batch))
        self._step += 1
        self._step_metrics["train_seconds"] = time.perf_counter() - began
        return loss

    def _accumulate(self, model: Any, batch: Batch) -> Tensor:
        """Adds up the gradient of the whole batch, micro-batch by micro-batch."""
        total = torch.zeros((), device=self.accelerator.device)
        self._metrics["train"].clear()
        means: dict[str, list[float]] = defaultdict(list)
        shares = []
        plan = self._micro_batches(model, batch, self._contributing(batch))
        if self.core:
            self.core.begin()
        for micro in plan:
            part = cut(batch, micro)
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, part) * micro_batch_weight(self.loss_type, batch, part)
            self.accelerator.backward(loss)
            total += loss.detach()
            shares.append(float(part["completion_mask"].sum()))
            for name, values in self._metrics["train"].items():
                means[name].extend(values)
            self._metrics["train"].clear()
        self._step_metrics |= training_curves(means, shares)
        self._step_metrics["trained_share"] = sum(len(micro.rows) for micro in plan) / len(batch["advantages"])
        return total

    def _micro_batches(self, model: Any, batch: Batch, kept_rows: Tensor | None) -> list[MicroBatch]:
        """The batch in micro-batches: as the core's plan for it says, or within the token budget.

        Without `kept_rows` nothing is kept for a backward, so twice as many tokens fit.
        """
        times = 2 if kept_rows is None else 1
        if not self.core:
            return plan_batch(batch, times * self.budget(model), kept_rows, self._shares_prompts)
        prompts, completions = batch["prompt_mask"].sum(1), batch["completion_mask"].sum(1)
        first, _ = same_prompts(batch["prompt_ids"], batch["prompt_mask"])
        together = int(prompts[first].sum() + completions.sum())
        budget = self.core.plan_step(int((prompts + completions).max()), together).tokens
        budget = min(budget, self.token_budget or budget)
        return plan_batch(batch, times * budget, kept_rows, end_to_end=True)

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        """TRL's loss; `use_vllm` switches on its factor for another engine's samples (`_correct_engine`)."""
        self._part, self.use_vllm = inputs, self._corrects_engine
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._part, self.use_vllm = {}, False

    def _correct_engine(self, logps: Tensor) -> None:
        """Enters the importance ratio of the micro-batch in progress; `logps` (b, C) are the current model's."""
        part = self._part
        old, sampled = part.get("old_per_token_logps", logps), part["sampling_per_token_logps"]
        mode, mask = self.vllm_importance_sampling_mode, part["completion_mask"]
        bounds = self.vllm_importance_sampling_clip_max, self.vllm_importance_sampling_clip_min
        part["importance_sampling_ratio"] = importance_ratio(old, sampled, mask, mode, *bounds)
        exact = logps if "old_is_rollout" in part else old
        gap = torch.nan_to_num((exact - sampled).abs() * mask).sum() / mask.sum().clamp(min=1)
        self._metrics["train"]["engine_gap"].append(gap.item())

    def _contributing(self, batch: Batch) -> Tensor:
        """(B,) bool: rows whose gradient is not zero by construction."""
        return (batch["advantages"] != 0) | (self.beta != 0.0)

    # --- log-probabilities -------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **options: Any
    ) -> LogpsAndEntropies:
        """Log-probs and entropies, each (B, C), for the loss; for old and reference TRL asks without gradients.

        With gradients the rows are a micro-batch already; without, they are the whole batch and are cut here.
        """
        if torch.is_grad_enabled():
            found = self._logps(model, input_ids, attention_mask, logits_to_keep, **options)
            if self.use_vllm:
                self._correct_engine(found[0].detach())
            return found
        split = input_ids.shape[1] - logits_to_keep
        batch = {
            "prompt_ids": input_ids[:, :split],
            "prompt_mask": attention_mask[:, :split],
            "completion_ids": input_ids[:, split:],
            "completion_mask": attention_mask[:, split:],
        }
        return self.within_memory(model, lambda: self._logps_in_parts(model, batch)), None, None

    def _logps_in_parts(self, model: Any, batch: Batch) -> Tensor:
        """Log-probs of a whole batch, (B, C), without gradients."""
        logps = torch.zeros(batch["completion_ids"].shape, device=batch["completion_ids"].device)
        for micro in self._micro_batches(model, batch, None):
            part = cut(batch, micro)
            ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
            mask = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
            found, _, _ = self._logps(model, ids, mask, micro.completion_width)
            logps[torch.tensor(micro.rows), : micro.completion_width] = found.to(logps.dtype)
        return logps

    def _logps(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **options: Any
    ) -> LogpsAndEntropies:
        """TRL's computation, the core's, or that of shared prompts on the model's own forward pass."""
        if not self._shares_prompts and not self.core:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **options
            )
        split = input_ids.shape[1] - logits_to_keep
        prompts = input_ids[:, :split], attention_mask[:, :split]
        completions = input_ids[:, split:], attention_mask[:, split:]
        if self.core:
            line = flat_completions(*prompts, *completions)
            terms = self.core.terms(line, self.temperature)
            logps, entropies = (scattered(found, line, completions[0]) for found in (terms.logps, terms.entropies))
            return logps, entropies, None
        with self.accelerator.autocast():
            found = completion_logprobs(model, *prompts, *completions)
        return found.log_probs, found.entropy, None
