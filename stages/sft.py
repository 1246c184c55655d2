"""Supervised fine-tuning on worked responses.

Reads a checkpoint and demos (a prompt and its response) from one or several references; makes a checkpoint
(merged weights; the adapter beside them in `adapter/`), `mix.json` (how many demos of which source), the curves
`metrics.jsonl` with the held-out loss, and `samples.jsonl` (a few prompts answered while training).

Paper: DeepSeek-R1 §2.3.1 (cold start) and §2.3.3 (second SFT, from the base again): 2-3 epochs, batch 128,
learning rate 5e-5 falling along a cosine to a tenth, context 32,768; supplementary B.4.3 for distillation,
the same with batch 64. How we differ: LoRA (with about ten times the rate) or all weights; demos too long for
`max_length` are left out and counted, not cut; a batch is a number of demos, packed or not, so packing changes
the time of a step and not what it learns.

Command: `make stage STAGE=cold_start`, or as part of `make r1-full`
"""

from statistics import fmean
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from pipeline.refs import DatasetRef
from pipeline.stage import Inputs, Runtime, Workdir, read_jsonl
from stages.rows import sources_of
from stages.sampling import Template
from stages.training import Schedule, TrainingStage, merge_metrics


class SFT(TrainingStage):
    """Makes the responses of the demos more likely, token by token."""

    kind: ClassVar[str] = "sft"
    spreads: ClassVar[bool] = True
    version: ClassVar[int] = 2
    demos: list[DatasetRef] = Field(min_length=1, description="prompts with the responses to learn")
    shares: tuple[float, ...] | None = Field(
        None, description="share of each reference in the mix, e.g. [0.779, 0.221]; null = everything there is"
    )
    caps: tuple[int | None, ...] | None = Field(
        None, description="most rows read of each reference, before shares; null = all"
    )
    num_demos: int | None = Field(None, ge=1, description="most demos in all; null = as many as there are")
    eval_share: float = Field(0.02, ge=0, le=0.5, description="share of the prompts held out to measure the loss")
    template: Template = Field("r1_zero", description="how a demo becomes a prompt (stages/chat.py)")
    max_length: int = Field(1024, ge=2, description="tokens of prompt and response; longer demos are left out")

    num_train_epochs: int = Field(2, ge=1, description="times each demo is seen")
    max_steps: int | None = Field(None, ge=1, description="updates of the model; null = as the epochs need")
    batch_size: int = Field(64, ge=1, description="demos in each step")
    learning_rate: float = Field(5e-5, gt=0)
    lr_scheduler_type: Schedule = "cosine_with_min_lr"
    min_lr_rate: float = Field(0.1, ge=0, le=1, description="where the cosine ends, as a share of the learning rate")
    loss_on_prompt: bool = Field(False, description="learn the prompts too, not only the responses")

    packing: Runtime[bool] = Field(True, description="lay a step's demos end to end; none sees another")
    eval_steps: Runtime[int] = Field(50, ge=1, description="steps between measures of the held-out loss")
    num_samples_shown: Runtime[int] = Field(3, ge=0, description="prompts answered at each of these points")
    save_steps: Runtime[int] = Field(50, ge=1, description="steps between checkpoints to resume from")

    @model_validator(mode="after")
    def _fits_its_references(self) -> Self:
        for name in ("shares", "caps"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.demos):
                raise ValueError(f"{name} has {len(given)} numbers for {len(self.demos)} references in demos")
        if self.shares is not None and (min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-3):
            raise ValueError(f"shares must be above 0 and sum to 1, not {sum(self.shares):g}")
        if any(cap is not None and cap < 1 for cap in self.caps or ()):
            raise ValueError("caps must be at least 1")
        return self

    @model_validator(mode="after")
    def _keeps_within_its_memory(self) -> Self:
        if self.memory_gb is not None and self.lora is None:
            raise ValueError("memory_gb holds where an adapter is trained: set lora, or lower token_budget")
        return self

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """Trains and saves the model; returns the loss over the last tenth of the steps, the held-out loss, counts."""
        from stages.engines import sft_run  # imports torch and trl

        sft_run.check(self)
        record = sft_run.train(self, inputs.checkpoint("model"), sources_of(inputs, "demos", "demo"), work)
        curve = read_jsonl(work.metrics_file)
        measured = {name: curve[-1][name] for name in ("eval_loss",) if name in curve[-1]}
        return {
            "loss": fmean(row["loss"] for row in curve[-max(1, len(curve) // 10) :]),
            **measured,
            **merge_metrics(work),
            "num_demos": record["num_demos"],
            "num_held_out": record["num_held_out"],
            "num_too_long": sum(source["num_too_long"] for source in record["sources"]),
        }
