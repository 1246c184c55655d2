"""Whether a stage fits a device, and if not, the mildest change of its settings with which it would.

Reads what `stages/forecast.py` foresees; makes a yes or no, or the settings to change. Behind the table and the hints
of `make doctor`, and behind the refusal of a stage that cannot fit. Imports no torch.
"""

import math
from collections.abc import Iterator
from typing import Any

from pipeline.stage import Stage
from stages.forecast import Device, at_its_longest, forecast, is_planned, uses_vllm
from stages.memory_plan import Shape
from stages.sampling import SamplingStage
from stages.training import Lora, TrainingStage


def fits(stage: Stage, shape: Shape, device: Device) -> bool:
    """Whether the stage can run at all, with the smallest micro-batch."""
    found = forecast(stage, shape, device)
    if found is None or not uses_vllm(stage, device):
        return found is None or found.least <= found.allowed
    return found.least <= found.allowed and found.least_cache <= found.cache <= device.total_bytes - found.held


def what_would_fit(stage: Stage, shape: Shape, device: Device) -> dict[str, Any] | None:
    """The first change of settings with which the stage fits, the mildest first; None where none does."""
    found = forecast(stage, shape, device)
    changes = _changes(stage, shape, device, found.least_cache) if found else ()
    return next((change for change in changes if fits(stage.model_copy(update=change), shape, device)), None)


def _changes(stage: Stage, shape: Shape, device: Device, least_cache: float) -> Iterator[dict[str, Any]]:
    """One change after the other, then more and more of them together."""
    steps: list[dict[str, Any]] = []
    if isinstance(stage, TrainingStage):
        steps += [{"gradient_checkpointing": True}] if not is_planned(stage, device) else []
        lora: dict[str, Any] = {} if stage.lora else {"lora": Lora()}
        steps += [lora, {"optim": "adamw_8bit"}, {"quantization": "nf4", **lora}] if device.is_gpu else [lora]
    if isinstance(stage, SamplingStage):
        share = math.ceil(20 * least_cache / device.total_bytes) / 20
        if uses_vllm(stage, device) and share < 1:
            steps += [{"vllm": stage.vllm.model_copy(update={"gpu_memory_utilization": share})}]
        steps += [{"sampler": "transformers"}] if uses_vllm(stage, device) else []
        whole = stage.max_completion_length
        most = room_for_prompts(stage, shape) if shape.context else whole
        steps += [{"max_completion_length": max(1, min(whole // part, most))} for part in (2, 4)]
    steps = [step for step in steps if any(getattr(stage, name) != value for name, value in step.items())]
    yield from steps
    together: dict[str, Any] = {}
    for step in steps:
        together = {**together, **step}
        if "sampler" in together:
            together.pop("vllm", None)
        yield together


def room_for_prompts(stage: SamplingStage, shape: Shape) -> int:
    """The `max_completion_length` that leaves half of the model's context to the prompts, in every phase."""
    longest = at_its_longest(stage)
    assert isinstance(longest, SamplingStage)
    return max(1, shape.context * stage.max_completion_length // (2 * longest.max_completion_length))
