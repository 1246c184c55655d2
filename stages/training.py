"""What stages that train a model have in common: the optimiser, LoRA, and what a machine has room for.

Not a stage itself; `GRPO` and `SFT` are.
"""

from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.artifact import read_json
from pipeline.refs import CHECKPOINT, CheckpointRef
from pipeline.stage import Inputs, Runtime, Stage, Workdir
from stages.engines.checkpoints import KEPT
from stages.memory_plan import Shape

MERGE_FILE = "merge.json"
CUDA_OPTIMISERS = ("8bit", "4bit", "paged", "ademamix")
"""What the names of optimisers have in them whose kernels need CUDA."""
Optimiser = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "sgd",
    "adafactor",
    "adagrad",
    "rmsprop",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_8bit",
    "lion_32bit",
    "paged_lion_8bit",
    "paged_lion_32bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_8bit",
    "paged_ademamix_32bit",
]
"""Those of transformers that torch and bitsandbytes bring along."""
Schedule = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "polynomial",
    "inverse_sqrt",
]
"""Of transformers. `cosine_with_min_lr` ends at `min_lr_rate` of SFT, elsewhere at `trl: {lr_scheduler_kwargs: …}`."""
GROWING_SEGMENTS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""Lets the blocks of torch's allocator grow on CUDA: large tensors that come and go leave no gaps between them."""


class Lora(BaseModel):
    """A low-rank adapter on the linear layers; it is merged into the weights at the end."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(32, ge=1)
    alpha: int = Field(64, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"


class TrainingStage(Stage, ABC):
    """The fields of a stage that trains; names are those of transformers' TrainingArguments."""

    makes: ClassVar[str] = CHECKPOINT

    model: CheckpointRef = Field(description="the checkpoint to start from")

    learning_rate: float = Field(1e-5, gt=0)
    lr_scheduler_type: Schedule = "constant_with_warmup"
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the rate rises to its value")
    optim: Optimiser = "adamw_torch_fused"
    weight_decay: float = Field(0.0, ge=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, ge=0)

    lora: Lora | None = Field(None, description="train an adapter; null = all weights")
    quantization: Literal["nf4"] | None = Field(None, description="keep the frozen weights in 4 bits (QLoRA)")
    trl: dict[str, Any] = Field(default_factory=dict, description="further settings of TRL's config, by its names")

    device: Runtime[Literal["auto", "cpu", "cuda"]] = "auto"
    token_budget: Runtime[int | Literal["auto"]] = Field(
        "auto", description="tokens of a micro-batch, padding included"
    )
    memory_gb: Runtime[float | None] = Field(
        None, gt=0, description="GB of a GPU for the whole step, with what transformers samples; null = what is free"
    )
    deterministic: Runtime[bool] = Field(
        False, description="on a GPU: the same numbers in every run, slower; a CPU always does, vLLM never promises it"
    )
    gradient_checkpointing: Runtime[bool] = Field(False, description="recompute activations: less memory, slower")
    save_steps: Runtime[int] = Field(20, ge=1, description="steps between checkpoints to resume from")

    @property
    def moments_bytes(self) -> int:
        """Of a weight that is trained: AdamW's two moments."""
        return 2 if "8bit" in self.optim else 8

    @field_validator("token_budget")
    @classmethod
    def _holds_a_token(cls, budget: int | str) -> int | str:
        if isinstance(budget, int) and budget < 1:
            raise ValueError("a micro-batch has 1 token at least; or `auto`")
        return budget

    def variables(self) -> dict[str, str]:
        return GROWING_SEGMENTS

    def room_bytes(self, inputs: Inputs) -> int:
        """The checkpoints that are kept, one more while it is written, one that the hacking alarm may hold, and the
        model at the end. 0 for a model from the hub, whose size is not known yet.
        """
        source = inputs.checkpoint("model")
        if not source.is_local:
            return 0
        folder = Path(source.path)
        config, size = read_json(folder / "config.json"), sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        is_fp32 = (config.get("dtype") or config.get("torch_dtype")) == "float32"
        num_weights = size // (4 if is_fp32 else 2)
        num_trained = _adapter_weights(config, self.lora.rank) if self.lora else num_weights
        return (KEPT + 2) * num_trained * (4 + self.moments_bytes) + max(size, 4 * num_trained)


def _adapter_weights(config: Mapping[str, Any], rank: int) -> int:
    """Of a LoRA on all linear layers; 0 for no decoder of the Llama kind, for beside the model it is little."""
    try:
        return Shape.of(config).adapter_weights(rank)
    except KeyError:
        return 0


def merge_metrics(work: Workdir) -> dict[str, float]:
    """How well the model saved in `work.path` computes what was trained (`stages/engines/merging.py`).

    `merge_drift` in nats a token (a classifier: as a share of its numbers), and with an adapter `merge_effect`, how
    far training moved the predictions, and `merge_kept`, the share of that which is left after merging.
    """
    return dict(read_json(work.path / MERGE_FILE))
