"""Which engine samples: chosen from a stage's settings and what the machine has."""

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ResourceError
from pipeline.stage import ModelSource
from stages.engines.models import load_model
from stages.engines.samplers import Sampler, TransformersSampler
from stages.engines.training_sampler import TrainingSampler

if TYPE_CHECKING:
    from stages.sampling import SamplingStage


def choose_engine(wanted: str, device: torch.device) -> str:
    """`auto` is vLLM on CUDA where it is installed, else transformers. ResourceError for vLLM where it cannot run."""
    has_vllm = importlib.util.find_spec("vllm") is not None
    if wanted == "auto":
        return "vllm" if device.type == "cuda" and has_vllm else "transformers"
    if wanted == "vllm" and not (has_vllm and device.type == "cuda"):
        missing = "vLLM is not installed" if not has_vllm else "this stage does not compute on CUDA"
        raise ResourceError(
            f"sampler 'vllm' was asked for, but {missing}",
            hint="set `sampler: auto`, or `make setup-gpu` on a GPU machine",
        )
    return wanted


def open_sampler(
    stage: "SamplingStage", source: ModelSource, tokenizer: Any, device: torch.device, model: Any | None = None
) -> Sampler:
    """The engine a stage samples with. `model` is the model in training, if there is one."""
    engine = choose_engine(stage.sampler, device)
    if engine == "transformers":
        if model is not None:
            return TrainingSampler(model, tokenizer, getattr(stage, "memory_gb", None))
        return TransformersSampler(load_model(source, device=device), tokenizer)
    from stages.engines import vllm_sampler

    if engine == "vllm_server":
        return vllm_sampler.ServerSampler(stage.vllm.url, tokenizer)
    return vllm_sampler.VllmSampler(
        source, tokenizer, stage.vllm, seed=stage.seed, max_completion_length=stage.max_completion_length, model=model
    )
