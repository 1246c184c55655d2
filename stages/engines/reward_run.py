"""From the settings of a reward-model stage to a trained model: tokenizes, trains with TRL's RewardTrainer, saves."""

import time
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.errors import DataError, ModelError
from pipeline.stage import ModelSource, Workdir
from stages.engines import trainers, trl_config
from stages.engines.merging import merge_and_save
from stages.engines.models import (
    choose_device,
    context_length,
    load_for_training,
    load_tokenizer,
    peak_memory_gib,
    quiet,
)
from stages.engines.reward_models import RewardModelScorer, encode
from stages.engines.token_budget import plan
from stages.engines.trainers import PipelineTrainer

if TYPE_CHECKING:
    from stages.reward_model import Pair, RewardModel

with quiet():
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

# Settings of RewardConfig that this stage decides in another way.
_OURS = ("max_length", "num_train_epochs", "disable_dropout")

Tokenized = dict[str, list[int]]
Batch = dict[str, torch.Tensor]


class TokenBudgetRewardTrainer(PipelineTrainer, RewardTrainer):
    """TRL's pairwise loss, or the pointwise one, over a step's pairs in micro-batches by tokens.

    A batch holds B pairs as 2B rows: the better texts, then the worse ones in the same order.
    """

    def __init__(self, token_budget: int | None, objective: str, **options: Any) -> None:
        super().__init__(**options)
        self.token_budget = token_budget
        self.objective = objective
        self._step_began = time.perf_counter()
        self._measured: dict[str, float] = {}

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over one step's pairs; returns the loss, detached. ModelError if it is no number."""
        model.train()
        batch = self._prepare_inputs(inputs)
        loss = self.within_memory(model, lambda: self._accumulate(model, batch))
        if not torch.isfinite(loss):
            raise ModelError(
                f"the loss of the reward model is {loss.item()} in step {self.state.global_step + 1}",
                hint="set a lower learning_rate; if it is the first step, the model it starts from is spoilt",
            )
        return loss

    def _accumulate(self, model: Any, batch: Batch) -> torch.Tensor:
        """The parts' gradients add up to that of the mean over all pairs of the step."""
        lengths = batch["attention_mask"].sum(1)
        num_pairs = len(lengths) // 2
        longer = torch.maximum(lengths[:num_pairs], lengths[num_pairs:])
        total = torch.zeros((), device=self.accelerator.device)
        logits_2P = []
        for micro in plan([0] * num_pairs, (2 * longer).tolist(), self.budget(model)):
            pairs = torch.tensor(micro.rows, device=total.device)
            rows, width = torch.cat([pairs, pairs + num_pairs]), micro.completion_width // 2
            part = {name: value[rows, :width] for name, value in batch.items()}
            with self.compute_loss_context_manager():
                loss, outputs = self.compute_loss(model, part, return_outputs=True)
            loss = loss * (len(pairs) / num_pairs)
            self.accelerator.backward(loss)
            total += loss.detach()
            logits_2P.append(outputs.logits.detach().float().view(2, -1))
        self._measure(torch.cat(logits_2P, 1), int(lengths.sum()))
        return total

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Bradley-Terry over the pairs (TRL's own), or binary cross-entropy: the better text is safe, the other not."""
        if self.objective == "pairwise":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs, use_cache=False)
        logits = outputs.logits.squeeze(-1).float()
        loss = binary_cross_entropy_with_logits(logits, _safe(logits))
        return (loss, outputs) if return_outputs else loss

    def _measure(self, logits_2P: torch.Tensor, num_tokens: int) -> None:
        chosen, rejected = logits_2P
        self._measured = {
            "accuracy": (chosen > rejected).float().mean().item(),
            "margin": (chosen - rejected).mean().item(),
            "mean_reward": logits_2P.mean().item(),
            "num_tokens": num_tokens,
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One row of `metrics.jsonl` for each step."""
        self._metrics["train"].clear()  # TRL's means weigh small and big micro-batches the same
        if "grad_norm" not in logs:  # the summary at the end of training
            return
        now = time.perf_counter()
        seconds, self._step_began = now - self._step_began, now
        row = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate")} | self._measured
        row |= {"step_seconds": seconds, "tokens_per_s": row.pop("num_tokens") / seconds, **peak_memory_gib()}
        self.work.log(self.state.global_step, row)


def check(stage: "RewardModel") -> None:
    """Everything that can be refused before a model is loaded; raises ConfigError or ResourceError."""
    trl_config.check(stage, RewardConfig, _OURS)


def train(stage: "RewardModel", source: ModelSource, pairs: list["Pair"], work: Workdir) -> int:
    """Trains the model at `source` on `pairs` and saves it in `work.path`; returns how many were too long."""
    device = choose_device(stage.device)
    tokenizer = load_tokenizer(source)
    model = load_for_training(source, device, stage.lora, stage.quantization, stage.seed, classifier=True)
    rows = tokenize(stage, pairs, tokenizer, min(stage.max_length, context_length(model.config)))
    with quiet():
        trainer = TokenBudgetRewardTrainer(
            token_budget=None if stage.token_budget == "auto" else stage.token_budget,
            objective=stage.objective,
            model=model,
            processing_class=tokenizer,
            args=_config(stage, len(rows), work, device),
            train_dataset=Dataset.from_list(rows),
        )
        trainers.run_training(trainer, work, stage.deterministic)
        merge_and_save(trainer.model, tokenizer, work.path)
    return len(pairs) - len(rows)


def logits(stage: "RewardModel", folder: ModelSource, pairs: list["Pair"]) -> list[tuple[float, float]]:
    """What the saved model gives the better and the worse text of each pair."""
    scorer = RewardModelScorer(folder, choose_device(stage.device), stage.template)
    prompts = [pair.prompt for pair in pairs]
    chosen = scorer.logits(prompts, [pair.chosen for pair in pairs])
    return list(zip(chosen, scorer.logits(prompts, [pair.rejected for pair in pairs]), strict=True))


def tokenize(stage: "RewardModel", pairs: list["Pair"], tokenizer: Any, limit: int) -> list[Tokenized]:
    """`chosen_ids` and `rejected_ids` of each pair that fits into `limit` tokens; DataError when none does."""
    prompts = [pair.prompt for pair in pairs]
    sides = [
        encode(tokenizer, stage.template, prompts, texts, limit=2**31)
        for texts in ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    ]
    rows = [
        {"chosen_ids": chosen, "rejected_ids": rejected}
        for chosen, rejected in zip(*sides, strict=True)
        if max(len(chosen), len(rejected)) <= limit
    ]
    if not rows:
        raise DataError(
            f"every one of {len(pairs)} preferences is longer than {limit} tokens",
            hint="raise max_length (the model's context is the other limit)",
        )
    return rows


def _safe(logits: torch.Tensor) -> torch.Tensor:
    """The labels of a batch of pairs: 1 for its first half, 0 for its second."""
    labels = torch.zeros_like(logits)
    labels[: len(logits) // 2] = 1
    return labels


def _config(stage: "RewardModel", num_rows: int, work: Workdir, device: torch.device) -> RewardConfig:
    own = {"max_length": None, "disable_dropout": not (stage.lora and stage.lora.dropout)}
    steps = trl_config.steps_for(stage, num_rows)
    return trl_config.config_of(RewardConfig, stage, work, device, stage.batch_size, steps, **own)
