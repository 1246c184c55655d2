"""What every trainer of ours shares: quiet settings, sealed checkpoints, a clean stop, one progress bar.

TRL's trainers are transformers' `Trainer` underneath. `PipelineTrainer` is mixed into them and replaces how a
checkpoint is written (sealed, two kept, no pickled settings, no model card) and where numbers go (`work.log`).
`run_training` resumes from the newest whole checkpoint, and turns SIGTERM and SIGINT into: finish the step, save, stop.
"""

import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from pipeline.errors import ConfigError, ResourceError
from pipeline.settings import did_you_mean
from pipeline.stage import Workdir
from stages.engines import checkpoints, ranks
from stages.engines.core import Core
from stages.engines.models import choose_device, quiet
from stages.engines.stopping import Stop, stop_on_signals
from stages.engines.token_budget import automatic_budget, lowered
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


class PipelineTrainer:
    """Mixed in before a TRL trainer: `class X(PipelineTrainer, SFTTrainer)`. `run_training` sets `work`.

    `token_budget` is what a micro-batch may hold; None = found from memory when training begins.
    """

    work: Workdir
    token_budget: int | None = None
    core: Core | None = None

    if TYPE_CHECKING:  # what the TRL trainer brings
        accelerator: Any
        args: Any
        model: Any
        state: Any

    def budget(self, model: Any) -> int:
        """Tokens of one micro-batch."""
        if self.token_budget is None:
            checkpointing = self.args.gradient_checkpointing
            self.token_budget = automatic_budget(model, self.accelerator.device, checkpointing)
        return self.token_budget

    def over_ranks(self, model: Any, accumulate: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        """A step's loss and gradients, the mean over all processes; `accumulate(model)` does this one's share.

        It gets the model without DDP's wrapper, whose own exchange counts on one backward pass everywhere.
        """
        bare = self.accelerator.unwrap_model(model)
        with ranks.alone(self.accelerator):
            loss = self.within_memory(bare, lambda: accumulate(bare))
        ranks.average_gradients(bare.parameters())
        if self.core:
            self.core.end()
        return loss

    def within_memory(self, model: Any, accumulate: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Runs a step's forward and backward passes; out of GPU memory, it begins again with less at once.

        It begins again from the first micro-batch, because a backward pass may have got half way.
        """
        while True:
            try:
                return accumulate()
            except torch.cuda.OutOfMemoryError:
                pass  # mended below, where the failed pass's tensors are no longer held by the traceback
            model.zero_grad()
            torch.cuda.empty_cache()
            note = self.core.lower() if self.core else self._halve_budget(model)
            self.work.progress(self.state.global_step, self.args.max_steps, note)

    def create_optimizer(self, model: Any = None) -> Any:
        """The core has all weights in one."""
        return super().create_optimizer(self.core.optimized if self.core else model)  # type: ignore[misc]

    def _halve_budget(self, model: Any) -> str:
        self.token_budget = self.budget(model) // 2
        if self.token_budget < 32:
            raise ResourceError(
                "the GPU's memory is too small for even one response",
                hint="set gradient_checkpointing: true, quantization: nf4, or shorter responses",
            )
        return f"out of GPU memory: token budget halved to {self.token_budget}"

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No card: the artifact's manifest says more."""

    def _send_telemetry(self) -> None:
        """Sends nothing."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Only the weights that change: transformers would add a pickle of its settings and the tokenizer."""
        only_adapter = {"save_embedding_layers": False} if hasattr(self.model, "peft_config") else {}
        self.model.save_pretrained(output_dir, state_dict=state_dict, **only_adapter)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = checkpoints.folder_of(self.work.checkpoints, self.state.global_step)
        if not ranks.is_main():  # its random state, into the folder that the main process seals
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self.save_extra(folder)
            self.accelerator.wait_for_everyone()
            return
        with checkpoints.in_the_making(folder, self.kept_step):
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self.save_extra(folder)
            self.work.flush()
            self.accelerator.wait_for_everyone()

    @property
    def kept_step(self) -> int | None:
        """A step whose checkpoint is kept however old it is; None = the newest ones only."""
        return None

    def save_extra(self, folder: Path) -> None:
        """For what a subclass must remember besides; written before the checkpoint is sealed."""


class _Stopping(TrainerCallback):
    """A signal to any of the processes ends training at the end of the step, with a checkpoint."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if ranks.any_of(self.stop.requested):
            self.stop.requested = True
            control.should_save = control.should_training_stop = True


class _Progress(TrainerCallback):
    """Reports each step to the stage's bar."""

    def __init__(self, work: Workdir) -> None:
        self.work = work

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.work.progress(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.work.progress(state.global_step, state.max_steps)


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


def run_training(trainer: Any, work: Workdir, deterministic: bool = False) -> int:
    """Trains to the end, from the newest whole checkpoint if there is one; returns the number of steps done.

    `deterministic`: also on a GPU kernels add up in one order only. Raises Interrupted after a signal, when the step
    was finished and saved.
    """
    trainer.work = work
    trainer.token_budget = trainer.token_budget and lowered(trainer.token_budget)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress(work))
    start = ranks.from_main(lambda: checkpoints.newest_whole(work.checkpoints))
    work.rewind(checkpoints.step_of(start) if start else 0)
    if start and checkpoints.step_of(start) >= trainer.args.max_steps:  # killed after training, before publishing
        trainer._load_from_checkpoint(str(start))
        return checkpoints.step_of(start)
    _fix_order(trainer.args.device, deterministic)
    with stop_on_signals() as stop, quiet():
        trainer.add_callback(_Stopping(stop))
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    step = int(trainer.state.global_step)
    if stop.requested and step < trainer.args.max_steps:
        raise stop.error(step)
    return step


def _fix_order(device: torch.device, deterministic: bool) -> None:
    """On a CPU with several threads, too, the gradient of indexing adds up in any order unless it is told not to."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    is_cpu = device.type == "cpu"
    torch.use_deterministic_algorithms(is_cpu or deterministic, warn_only=not is_cpu)
