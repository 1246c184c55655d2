"""What every trainer of ours shares: sealed checkpoints, a clean stop, one progress bar.

TRL's trainers are transformers' `Trainer` underneath. `PipelineTrainer` is mixed into them and replaces how a
checkpoint is written (sealed, two kept, no pickled settings, no model card) and where numbers go (`work.log`).
`run_training` resumes from the newest whole checkpoint, and turns SIGTERM and SIGINT into: finish the step, save, stop.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from pipeline.errors import ResourceError
from pipeline.stage import Workdir
from stages.engines import checkpoints, ranks
from stages.engines.core import Core
from stages.engines.merging import save_adapters
from stages.engines.models import quiet
from stages.engines.stopping import Stop, stop_on_signals
from stages.engines.token_budget import automatic_budget, lowered


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
        if hasattr(self.model, "peft_config"):
            save_adapters(self.model, Path(output_dir or self.args.output_dir))
        else:
            self.model.save_pretrained(output_dir, state_dict=state_dict)

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
    if trainer.core:
        trainer.core.rest()
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
