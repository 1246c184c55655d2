"""Supervised fine-tuning on worked responses.

Reads a checkpoint and demos (a prompt and its response); makes a checkpoint (merged weights; the adapter
beside them in `adapter/`) and the curves `metrics.jsonl`.

Paper: DeepSeek-R1 §2.3.1 (cold start) and §2.3.3 (second SFT, from the base again): 2-3 epochs, batch 128,
learning rate 5e-5 falling along a cosine to a tenth, context 32,768; supplementary B.4.3 for distillation,
the same with batch 64. How we differ: LoRA (with about ten times the rate) or all weights; demos too long for
`max_length` are left out and counted, not cut; no packing: a step's demos are computed in micro-batches of
similar length within a token budget, so little padding is computed and no demo ever sees another.

Command: `make stage STAGE=cold_start`, or as part of `make r1-full`
"""

from statistics import fmean
from typing import Any, ClassVar

from pydantic import Field

from pipeline.refs import DatasetRef
from pipeline.stage import Inputs, Runtime, Workdir, read_jsonl
from stages.sampling import Template
from stages.training import TrainingStage


class SFT(TrainingStage):
    """Makes the responses of the demos more likely, token by token."""

    kind: ClassVar[str] = "sft"
    demos: list[DatasetRef] = Field(description="prompts with the responses to learn")
    num_demos: int | None = Field(None, ge=1, description="at most so many from each reference; null = all")
    template: Template = Field("r1_zero", description="how a demo becomes a prompt (stages/chat.py)")
    max_length: int = Field(1024, ge=2, description="tokens of prompt and response; longer demos are left out")

    num_train_epochs: int = Field(2, ge=1, description="times each demo is seen")
    max_steps: int | None = Field(None, ge=1, description="updates of the model; null = as the epochs need")
    batch_size: int = Field(64, ge=1, description="demos in each step")
    learning_rate: float = Field(5e-5, gt=0)
    lr_scheduler_type: str = "cosine_with_min_lr"
    min_lr_rate: float = Field(0.1, ge=0, le=1, description="where the cosine ends, as a share of the learning rate")
    loss_on_prompt: bool = Field(False, description="learn the prompts too, not only the responses")

    save_steps: Runtime[int] = Field(50, ge=1, description="steps between checkpoints to resume from")

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """Trains and saves the model; returns the mean loss over the last tenth of the steps."""
        from stages.engines import sft_run  # imports torch and trl

        sft_run.check(self)
        demos = inputs.rows("demos", limit=self.num_demos)
        num_left_out = sft_run.train(self, inputs.checkpoint("model"), demos, work)
        losses = [row["loss"] for row in read_jsonl(work.metrics_file)]
        return {"loss": fmean(losses[-max(1, len(losses) // 10) :]), "num_too_long": num_left_out}
