"""From the settings of an SFT stage to a trained model: tokenizes, checks, trains with TRL's SFTTrainer,
saves."""

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ConfigError, DataError
from pipeline.stage import ModelSource, Workdir
from stages.chat import TEMPLATES
from stages.engines import trainers
from stages.engines.models import (
    choose_device,
    context_length,
    load_for_training,
    load_tokenizer,
    merge_and_save,
    peak_memory_gib,
    quiet,
)
from stages.engines.samplers import encode_prompts
from stages.engines.token_budget import plan
from stages.engines.trainers import PipelineTrainer

if TYPE_CHECKING:
    from stages.sft import SFT

with quiet():
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

# Settings of SFTConfig that this stage decides in another way.
_OURS = [
    *trainers.OURS,
    *(
        "per_device_train_batch_size",
        "max_length",
        "packing",
        "padding_free",
        "lr_scheduler_kwargs",
        "max_steps",
    ),
    *("completion_only_loss", "assistant_only_loss", "num_train_epochs"),
]

Tokenized = dict[str, list[int]]


class TokenBudgetSFTTrainer(PipelineTrainer, SFTTrainer):
    """TRL's loss over a step's demos, in micro-batches by tokens; the gradient is that of the whole step."""

    def __init__(self, token_budget: int | None, **options: Any) -> None:
        super().__init__(**options)
        self.token_budget = token_budget
        self._step_began = time.perf_counter()
        self._num_tokens = 0

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward over one step's demos; returns the loss, detached."""
        model.train()
        batch = self._prepare_inputs(inputs)
        return self.within_memory(model, lambda: self._accumulate(model, batch, num_items_in_batch))

    def _accumulate(self, model: Any, batch: dict[str, torch.Tensor], num_items_in_batch: Any) -> torch.Tensor:
        """TRL divides each micro-batch's loss by the tokens of the whole step, so the parts simply add up."""
        lengths = batch["attention_mask"].sum(1).tolist()
        total = torch.zeros((), device=self.accelerator.device)
        for micro in plan([0] * len(lengths), lengths, self.budget(model)):
            rows = torch.tensor(micro.rows, device=total.device)
            part = {name: value[rows, : micro.completion_width] for name, value in batch.items()}
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, part, num_items_in_batch=num_items_in_batch)
            self.accelerator.backward(loss)
            total += loss.detach()
        self._num_tokens = sum(lengths)
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One row of `metrics.jsonl` for each step."""
        measured, self._metrics["train"] = self._metrics["train"], type(self._metrics["train"])(list)
        if "grad_norm" not in logs:  # the summary at the end of training
            return
        now = time.perf_counter()
        seconds, self._step_began = now - self._step_began, now
        row = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate")}
        row |= {name: sum(measured[name]) / len(measured[name]) for name in ("entropy", "mean_token_accuracy")}
        row |= {"step_seconds": seconds, "tokens_per_s": self._num_tokens / seconds, **peak_memory_gib()}
        self.work.log(self.state.global_step, row)


def check(stage: "SFT") -> None:
    """Everything that can be refused before a model is loaded; raises ConfigError or ResourceError."""
    trainers.check_optimiser(stage.optim, choose_device(stage.device))
    trainers.check_extra(stage.trl, SFTConfig, {*trainers.PASSED_ON, *_OURS})
    trainers.check_quantization(stage.quantization, stage.lora)


def train(stage: "SFT", source: ModelSource, demos: list[dict[str, str]], work: Workdir) -> int:
    """Trains the model at `source` on `demos` and saves it; returns how many demos were too long."""
    device = choose_device(stage.device)
    tokenizer = load_tokenizer(source)
    model = load_for_training(source, device, stage.lora, stage.quantization, stage.seed)
    limit = min(stage.max_length, context_length(model))
    rows = fitting(tokenize(stage, demos, tokenizer), demos, limit)
    with quiet():
        trainer = TokenBudgetSFTTrainer(
            token_budget=None if stage.token_budget == "auto" else stage.token_budget,
            model=model,
            processing_class=tokenizer,
            args=_config(stage, len(rows), work, device),
            train_dataset=Dataset.from_list(rows),
        )
        trainers.run_training(trainer, work)
        merge_and_save(trainer.accelerator.unwrap_model(trainer.model), tokenizer, work.path)
    return len(demos) - len(rows)


def tokenize(stage: "SFT", demos: list[dict[str, str]], tokenizer: Any) -> list[Tokenized]:
    """`input_ids` and `labels` of each demo, cut between prompt and response as sampling will cut it."""
    template = TEMPLATES[stage.template]
    prompts = encode_prompts(tokenizer, [template.prompt(demo["prompt"], tokenizer) for demo in demos])
    responses = tokenizer([demo["response"] for demo in demos], add_special_tokens=False)["input_ids"]
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        target = [*response, tokenizer.eos_token_id]
        ignored = prompt if stage.loss_on_prompt else [-100] * len(prompt)
        rows.append({"input_ids": prompt + target, "labels": ignored + target})
    return rows


def fitting(rows: list[Tokenized], demos: list[dict[str, str]], limit: int) -> list[Tokenized]:
    """The rows of at most `limit` tokens; DataError when there is none."""
    kept = [row for row in rows if len(row["input_ids"]) <= limit]
    if not kept:
        shortest = min(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        raise DataError(
            f"every demo is longer than {limit} tokens; the shortest, {demos[shortest]['id']!r}, has "
            f"{len(rows[shortest]['input_ids'])}",
            hint="raise max_length (the model's context is the other limit)",
        )
    return kept


def _config(stage: "SFT", num_rows: int, work: Workdir, device: torch.device) -> SFTConfig:
    steps = stage.max_steps or math.ceil(num_rows / stage.batch_size) * stage.num_train_epochs
    floor = {"min_lr_rate": stage.min_lr_rate} if stage.lr_scheduler_type == "cosine_with_min_lr" else {}
    try:
        return SFTConfig(
            **trainers.common_arguments(work, device, stage.save_steps, stage.seed),
            **{name: getattr(stage, name) for name in trainers.PASSED_ON},
            per_device_train_batch_size=stage.batch_size,
            gradient_accumulation_steps=1,
            max_steps=steps,
            warmup_steps=math.ceil(stage.warmup_ratio * steps),
            lr_scheduler_kwargs=floor,
            max_length=None,
            gradient_checkpointing=stage.gradient_checkpointing,
            **stage.trl,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TRL refuses the settings of this stage: {error}") from error
