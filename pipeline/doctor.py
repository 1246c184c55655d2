"""What a recipe will need, what this machine has, and what stands in the way: known before anything is loaded.

Reads the resolved recipe, the shape of each stage's model (its `config.json`, or `configs/shapes.yaml` for one that is
not on this disk), and the machine. Makes a `Diagnosis` for every stage; `require_fits` refuses a run that cannot end
well. The arithmetic is in `stages/forecast.py` and `what_fits.py`.

Command: `make doctor SCALE=qwen-1.5b` (`pipeline/doctor_table.py` prints it)
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import card
from pipeline.artifact import read_or_empty
from pipeline.errors import DataError, ResourceError
from pipeline.estimates import whole_seconds
from pipeline.machine import GIB, Machine, this_machine
from pipeline.places import CONFIGS
from pipeline.recipe import Recipe
from pipeline.refs import CHECKPOINT, Ref
from pipeline.settings import read_yaml
from pipeline.sources import hub_answers
from pipeline.stage import Stage, locate
from stages.forecast import Device, Forecast, at_its_longest, forecast, num_weights, uses_vllm
from stages.grpo import GRPO
from stages.memory_plan import CONTEXT_BYTES, Shape
from stages.training import CUDA_OPTIMISERS
from stages.what_fits import fits, room_for_prompts, what_would_fit

CARD_SIZES_GB = (6, 8, 12, 16, 24, 48, 80)


class Problem(NamedTuple):
    """What stands in the way, in one sentence, and what would do instead."""

    sentence: str
    instead: str


@dataclass(frozen=True)
class Diagnosis:
    """One stage: its forecast on this machine (None: nothing is known of its model) and what is wrong."""

    stage: str
    kind: str
    found: Forecast | None
    problems: tuple[Problem, ...]
    on_cards: dict[int, str]
    """GB of a card -> "yes", "no", or the settings with which the stage fits."""


def diagnoses(recipe: Recipe, names: Iterable[str], machine: Machine) -> list[Diagnosis]:
    """One for every named stage that computes with a model."""
    return [_diagnosis(recipe, name, machine) for name in names if hasattr(recipe.stages[name], "device")]


def _diagnosis(recipe: Recipe, name: str, machine: Machine) -> Diagnosis:
    stage, shape = recipe.stages[name], shape_of(recipe.stages[name], recipe.stages, recipe.folder)
    cards = {size: Device(f"{size} GB", size * GIB, has_vllm=True) for size in CARD_SIZES_GB}
    return Diagnosis(
        stage=name,
        kind=stage.kind,
        found=forecast(stage, shape, device_of(stage, machine)) if shape else None,
        problems=tuple(problems(name, stage, shape, machine)),
        on_cards={size: _on(stage, shape, card) for size, card in cards.items()} if shape else {},
    )


def _on(stage: Stage, shape: Shape, card: Device) -> str:
    if fits(stage, shape, card):
        return "yes"
    change = what_would_fit(stage, shape, card)
    return "no" if change is None else ", ".join(_word(key, value) for key, value in change.items())


def require_fits(recipe: Recipe, names: Iterable[str]) -> None:
    """A ResourceError when one of these stages cannot work on this machine; before anything is loaded."""
    machine = this_machine()
    for name in names:
        stage = recipe.stages[name]
        if not hasattr(stage, "device"):
            continue
        for problem in problems(name, stage, shape_of(stage, recipe.stages, recipe.folder), machine):
            raise ResourceError(problem.sentence, hint=problem.instead)


def out_of_reach(recipe: Recipe) -> dict[str, str]:
    """A sentence and its hint where the hub does not answer and something is to come from it; else nothing."""
    wanted: dict[str, None] = {}
    for stage in recipe.stages.values():
        for field, ref in stage.references():
            if ref.scheme == "hub" and not _snapshot(ref).is_dir():
                wanted[str(ref).partition("@")[0]] = None
            elif ref.scheme == "card" and _comes_from_hub(ref, stage.default_split(field)):
                wanted[str(ref)] = None
    if not wanted or hub_answers():
        return {}
    hint = "connect, or set R1_DATA to a folder with the data and give a model as path:models/NAME"
    return {f"the hub does not answer, and what its cache does not have cannot be loaded: {', '.join(wanted)}": hint}


def _comes_from_hub(ref: Ref, split: str) -> bool:
    address = card.parse_card_ref(ref.target)
    with suppress(DataError):  # told by `needs.missing`
        return card.load_card(address.name).needs_hub(address.split or split, address.config)
    return False


def recorded_forecast(stage: Stage, run_dir: Path) -> dict[str, Any] | None:
    """What goes into the manifest of `stage`, to be held against what was measured; what it rests on is done."""
    shape = shape_of(stage, {}, run_dir)
    found = forecast(stage, shape, device_of(stage, this_machine())) if shape else None
    return found.as_json() if found else None


def measured_minutes(recipe: Recipe) -> dict[str, float]:
    """Minutes of a step of the stages whose time is known better than by an estimate, as `make plan` knows it."""
    steps = {name: steps for name, stage in recipe.stages.items() if (steps := getattr(stage, "max_steps", None))}
    known = {name: seconds for name in steps if (seconds := whole_seconds(recipe, name))}
    return {name: seconds / 60 / steps[name] for name, seconds in known.items()}


# --- the model ------------------------------------------------------------------------------------


def shape_of(stage: Stage, stages: Mapping[str, Stage], run_dir: Path) -> Shape | None:
    """The sizes of a stage's model; None where they are not known on this machine."""
    ref = getattr(stage, "model", None)
    config = _config_behind(ref, stages, run_dir) if isinstance(ref, Ref) else None
    try:
        return Shape.of(config) if config else None
    except (KeyError, TypeError):  # no decoder of the Llama kind
        return None


def _config_behind(ref: Ref, stages: Mapping[str, Stage], run_dir: Path) -> dict[str, Any] | None:
    if ref.scheme == "hub":
        return _read(_snapshot(ref)) or _known(f"hub:{ref.target.partition('@')[0]}")
    if found := _read(locate(ref, run_dir)):
        return found
    before = getattr(stages.get(ref.target), "model", None) if ref.scheme == "stage" else None
    return _config_behind(before, stages, run_dir) if isinstance(before, Ref) else _known(str(ref))


def _snapshot(ref: Ref) -> Path:
    """Where huggingface_hub keeps a model of the hub that it has fetched."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface"
    cache, (name, _, revision) = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub"), ref.target.partition("@")
    return cache / f"models--{name.replace('/', '--')}/snapshots/{revision}"


def _read(folder: Path) -> dict[str, Any]:
    return read_or_empty(folder / "config.json")


def _known(ref: str) -> dict[str, Any] | None:
    return read_yaml(CONFIGS / "shapes.yaml").get(ref) if (CONFIGS / "shapes.yaml").is_file() else None


# --- the machine ----------------------------------------------------------------------------------


def device_of(stage: Stage, machine: Machine) -> Device:
    """What the stage computes on here: `auto` is CUDA where torch can use it."""
    wants_cpu = getattr(stage, "device", "auto") == "cpu"
    if machine.gpus and machine.has_cuda and not wants_cpu:
        gpu = machine.gpus[0]
        return Device(gpu.name, gpu.total_bytes, has_vllm=bool(machine.vllm))
    return Device(machine.cpu, machine.memory_bytes, is_gpu=False, cores=machine.cores)


def problems(name: str, stage: Stage, shape: Shape | None, machine: Machine) -> list[Problem]:
    """What keeps this stage from working on this machine, the plainest first."""
    device = device_of(stage, machine)
    found = [] if device.is_gpu else _without_cuda(name, stage, machine)
    if device.is_gpu and getattr(stage, "sampler", None) == "vllm" and not machine.vllm:
        instead = f"ARGS=stages.{name}.sampler=auto samples without it; `make setup-gpu` installs it"
        found.append(Problem(f"stage {name}: sampler 'vllm' was asked for, but vLLM is not installed", instead))
    if shape and isinstance(stage, GRPO):
        found += _beyond_context(name, stage, shape)
    if not found and shape and not fits(stage, shape, device):
        found.append(_too_big(name, stage, shape, device))
    return found


def _without_cuda(name: str, stage: Stage, machine: Machine) -> list[Problem]:
    """Settings that need CUDA where the stage has none."""
    why = machine.why_no_cuda if not machine.has_cuda else "the stage is to compute on the CPU"
    wanted = {
        "device": ("cuda", "auto"),
        "quantization": ("nf4", "null"),
        "sampler": ("vllm", "auto"),
    }
    found = []
    for setting, (needs, instead) in wanted.items():
        if getattr(stage, setting, None) == needs:
            found.append(_needs_cuda(name, f"{setting} '{needs}'", why, f"stages.{name}.{setting}={instead}"))
    optim = getattr(stage, "optim", "")
    if any(mark in optim for mark in CUDA_OPTIMISERS):
        found.append(_needs_cuda(name, f"optim '{optim}'", why, f"stages.{name}.optim=adamw_torch"))
    return found


def _needs_cuda(name: str, what: str, why: str, assignment: str) -> Problem:
    return Problem(f"stage {name}: {what} needs CUDA, but {why}", f"ARGS={assignment}, or SCALE=mini, made for a CPU")


def _beyond_context(name: str, stage: GRPO, shape: Shape) -> list[Problem]:
    """Responses as long as the model's context; a training samples them whole, so no prompt has room beside them."""
    longest = at_its_longest(stage)
    if not shape.context or not isinstance(longest, GRPO) or longest.max_completion_length < shape.context:
        return []
    sentence = f"responses of {longest.max_completion_length} tokens leave a prompt no room in the model's context"
    setting = f"stages.{name}.max_completion_length={room_for_prompts(stage, shape)}"
    instead = f"ARGS={setting} leaves half of it to the prompts"
    return [Problem(f"stage {name}: {sentence} of {shape.context}", instead)]


def _too_big(name: str, stage: Stage, shape: Shape, device: Device) -> Problem:
    found = forecast(stage, shape, device)
    assert found is not None
    told = getattr(stage, "memory_gb", None)
    if told and fits(stage.model_copy(update={"memory_gb": None}), shape, device):
        least = ceil((found.least + CONTEXT_BYTES) / 1e8) / 10
        sentence = f"memory_gb={told:g} is too little, it needs {least:g} at least"
        return Problem(f"stage {name}: {sentence}", f"ARGS=stages.{name}.memory_gb={least:g}, or smaller settings")
    has = f"{device.name if device.is_gpu else 'this machine'} has {device.total_bytes / GIB:.1f}"
    change = what_would_fit(stage, shape, device)
    instead = "a smaller model, or a bigger device: `make doctor` says on which it fits"
    if change:
        words = " ".join(f"stages.{name}.{_word(key, value)}" for key, value in change.items())
        instead = f'what fits: ARGS="{words}"'
    if uses_vllm(stage, device) and found.least_cache > found.cache:
        share = f"{found.cache / GIB:.1f} GiB, its share of {device.total_bytes / GIB:.1f}"
        sentence = f"vLLM needs {found.least_cache / GIB:.1f} GiB for its weights and one response, and gets {share}"
        return Problem(f"stage {name}: {sentence}", instead)
    needs = max(found.least, found.held + found.cache if uses_vllm(stage, device) else 0)
    return Problem(f"stage {name}: it needs {needs / GIB:.1f} GiB at least, and {has}", instead)


def _word(setting: str, value: Any) -> str:
    """`optim=adamw_8bit`, `lora.rank=32`, `vllm.gpu_memory_utilization=0.2`: as ARGS takes it."""
    if setting == "lora":
        return f"lora.rank={value.rank}"
    if setting == "vllm":
        return f"vllm.gpu_memory_utilization={value.gpu_memory_utilization:g}"
    return f"{setting}={str(value).lower() if isinstance(value, bool) else value}"


def disk_bytes(recipe: Recipe, names: Iterable[str]) -> float:
    """About what these stages leave on disk: 2 bytes a weight for each model that is made or fetched."""
    stages = {name: recipe.stages[name] for name in names}
    sizes = {name: shape_of(stage, recipe.stages, recipe.folder) for name, stage in stages.items()}
    made = [sizes[name] for name, stage in stages.items() if stage.makes == CHECKPOINT]
    fetched = {
        ref: sizes[name] for name, stage in stages.items() for _, ref in stage.references() if ref.scheme == "hub"
    }
    return sum(2.0 * num_weights(shape) for shape in [*made, *fetched.values()] if shape)
