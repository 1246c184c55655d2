"""What stages share: how to prompt, how to sample and on which engine, what a LoRA adapter is.

Not a stage itself; `GRPO`, `Evaluate` and `SFT` are.
"""

from abc import ABC
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.stage import Runtime, Stage
from stages.chat import TEMPLATES, Response, parse

Template = Literal["mini", "r1_zero", "r1_zero_prefilled", "chat"]


class Vllm(BaseModel):
    """Options of the vLLM engine, by its own names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_memory_utilization: float = Field(0.4, gt=0, le=1, description="share of the GPU for vLLM's weights and cache")
    max_model_len: int | None = Field(None, ge=1, description="longest prompt and response; null = what is needed")
    attention_backend: str | None = Field(None, description="e.g. FLASH_ATTN; null = vLLM chooses")
    enforce_eager: bool = Field(False, description="no CUDA graphs: starts sooner, samples slower")
    url: str = Field("http://127.0.0.1:8000", description="where `vllm serve` listens, for sampler: vllm_server")


class SamplingStage(Stage, ABC):
    """The fields of a stage that samples."""

    template: Template = Field("r1_zero", description="how a problem becomes a prompt (stages/chat.py)")
    max_completion_length: int = Field(256, ge=1, description="tokens of a response; longer ones are cut off")
    temperature: float = Field(1.0, ge=0, description="0 = always the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1)

    sampler: Runtime[Literal["auto", "transformers", "vllm", "vllm_server"]] = Field(
        "auto", description="auto = vLLM on CUDA where it is installed, else transformers"
    )
    vllm: Runtime[Vllm] = Vllm()
    device: Runtime[Literal["auto", "cpu", "cuda"]] = "auto"

    def prompts(self, problems: Sequence[dict[str, Any]], tokenizer: Any) -> list[str]:
        """The text the model continues, for each problem."""
        template = TEMPLATES[self.template]
        return [template.prompt(problem["prompt"], tokenizer) for problem in problems]

    def parse(self, text: str) -> Response:
        """A completion taken apart, as this stage's template wrote its prompt."""
        return parse(text, prefilled=TEMPLATES[self.template].prefilled)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts at which a response ends."""
        return TEMPLATES[self.template].stop
