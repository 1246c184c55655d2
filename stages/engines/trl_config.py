"""From the settings of a stage that trains to TRL's config, and what of them is refused before a model is loaded.

Reads a `TrainingStage`; makes a GRPOConfig, SFTConfig or RewardConfig. Names are TRL's. What a stage has no setting for
goes through its `trl:` mapping, but for what it decides itself (`OURS`) and what nobody may set (`_NEVER`).
"""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ConfigError, ResourceError
from pipeline.settings import did_you_mean
from pipeline.stage import Workdir
from stages.engines.models import choose_device
from stages.training import CUDA_OPTIMISERS, TrainingStage

if TYPE_CHECKING:
    from stages.reward_model import RewardModel
    from stages.sft import SFT

# Settings that have the same name in the stages and in TRL's configs and are passed on as they are.
PASSED_ON = ("learning_rate", "lr_scheduler_type", "optim", "weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm")
# Settings of TRL's configs that every stage of ours decides itself.
OURS = (
    *("output_dir", "seed", "gradient_accumulation_steps", "gradient_checkpointing", "activation_checkpointing"),
    *("save_steps", "save_strategy", "save_total_limit", "logging_steps", "report_to", "resume_from_checkpoint"),
    *("per_device_train_batch_size", "max_steps", "warmup_steps", "bf16", "fp16", "use_cpu", "model_init_kwargs"),
    # A resume would not be the uninterrupted run.
    *("save_only_model", "ignore_data_skip", "enable_jit_checkpoint", "load_best_model_at_end"),
)
# Parts of the names of settings that would run code from a model, send something away or read what is not pinned.
_NEVER = ("trust_remote", "hub", "path")


def common_arguments(work: Workdir, device: torch.device, save_steps: int, seed: int) -> dict[str, Any]:
    """TrainingArguments that every stage sets the same way."""
    return {
        "output_dir": str(work.checkpoints),
        "seed": seed,
        "save_strategy": "steps",
        "save_steps": save_steps,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not a number must be seen
        "disable_tqdm": True,
        "report_to": "none",
        "log_level": "error",
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        "use_cpu": device.type == "cpu",
        "bf16": device.type == "cuda",
        "dataloader_pin_memory": device.type == "cuda",
    }


def config_of(
    config_class: type,
    stage: TrainingStage,
    work: Workdir,
    device: torch.device,
    batch_size: int,
    steps: int,
    **own: Any,
) -> Any:
    """The stage's settings as TRL's config: what every stage sets, its `own`, its `trl`. ConfigError where TRL refuses.

    `batch_size` is that of one process; an update takes one batch.
    """
    try:
        return config_class(
            **common_arguments(work, device, stage.save_steps, stage.seed),
            **{name: getattr(stage, name) for name in PASSED_ON},
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=1,
            max_steps=steps,
            warmup_steps=math.ceil(stage.warmup_ratio * steps),
            gradient_checkpointing=stage.gradient_checkpointing,
            **own,
            **stage.trl,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"TRL refuses the settings of this stage: {error}") from error


def steps_for(stage: "SFT | RewardModel", num_rows: int) -> int:
    """Updates of a stage that sees each of its rows so many times, unless it was told."""
    return stage.max_steps or math.ceil(num_rows / stage.batch_size) * stage.num_train_epochs


def check(stage: TrainingStage, config_class: type, own: Collection[str]) -> None:
    """What can be refused before a model is loaded; `own`: the stage's own settings besides those that all have.

    Raises ConfigError or ResourceError.
    """
    check_optimiser(stage.optim, choose_device(stage.device))
    check_extra(stage.trl, config_class, {*PASSED_ON, *OURS, *own})
    check_quantization(stage.quantization, stage.lora)


def check_extra(extra: dict[str, Any], config_class: type, ours: set[str]) -> None:
    """Refuses keys of a stage's `trl:` mapping that TRL does not have, that the stage sets itself, or nobody may."""
    known = set(config_class.__dataclass_fields__)  # type: ignore[attr-defined]
    for name in extra:
        if name not in known:
            hint = did_you_mean(name, sorted(known)) if len(name) > 2 else ""
            raise ConfigError(f"trl: {config_class.__name__} has no setting '{name}'", hint=hint)
        if name in ours:
            raise ConfigError(f"trl: '{name}' is set by the stage itself", hint="use the stage's own setting for it")
        if any(part in name for part in _NEVER):
            hint = "no code of a model is run, nothing is sent to a hub, and templates are those of stages/chat.py"
            raise ConfigError(f"trl: '{name}' cannot be set", hint=hint)


def check_optimiser(optim: str, device: torch.device) -> None:
    """Refuses an optimiser whose kernels need CUDA on a machine without."""
    if device.type != "cuda" and any(mark in optim for mark in CUDA_OPTIMISERS):
        raise ResourceError(
            f"optim '{optim}' needs CUDA, and this stage computes on {device.type}", hint="set `optim: adamw_torch`"
        )


def check_quantization(quantization: str | None, lora: object | None) -> None:
    """Refuses frozen 4-bit weights without an adapter: there would be nothing to train."""
    if quantization and lora is None:
        raise ConfigError(
            f"quantization '{quantization}' freezes the weights, so there is nothing to train",
            hint="set lora: {rank: 32, alpha: 64}",
        )
