"""How long the stages of a plan will take, as far as that is known.

From finished runs on this machine where there are some: a stage of the same name, scale, kind and settings (any
seed) that read the same references. Else from `minutes:` in the scale file, in proportion to the steps and samples that
ARGS ask for. A stage that was cut off is expected to take what is left of that.
"""

from collections.abc import Iterable
from contextlib import suppress
from math import prod
from statistics import median
from typing import Any

from pipeline.artifact import MANIFEST, read_or_empty
from pipeline.places import runs_folder
from pipeline.plan import DONE, RESUME, Line, partial_folder, record_of
from pipeline.provenance import hardware
from pipeline.recipe import Recipe, load_recipe

SIZES = ("max_steps", "num_problems", "num_generations", "num_samples")
"""Settings that the time of a stage is in proportion to, wherever it has them."""


def expected_seconds(recipe: Recipe, lines: Iterable[Line]) -> dict[str, float | None]:
    """Stage -> the seconds it is expected to take, for every line that is not done; None where nothing is known."""
    return {line.stage: _left(recipe, line) for line in lines if line.state != DONE}


def whole_seconds(recipe: Recipe, stage: str) -> float | None:
    """What a stage takes from beginning to end."""
    found = _measured(recipe, stage)
    return _as_written(recipe, stage) if found is None and stage in recipe.minutes else found


def _as_written(recipe: Recipe, stage: str) -> float:
    """What the scale says of the stage as the recipe has it, made longer or shorter as ARGS ask."""
    asked, written = recipe.stages[stage], load_recipe(recipe.name, recipe.scale).stages.get(stage)
    sizes = ((getattr(asked, name, None), getattr(written, name, None)) for name in SIZES)
    return 60 * recipe.minutes[stage] * prod(here / there for here, there in sizes if here and there)


def _left(recipe: Recipe, line: Line) -> float | None:
    whole = whole_seconds(recipe, line.stage)
    if whole is None or line.state != RESUME:
        return whole
    progress = read_or_empty(partial_folder(recipe.folder, line.stage) / "progress.json")
    return max(0.0, whole - float(progress.get("seconds") or 0))


def _measured(recipe: Recipe, stage: str) -> float | None:
    """The median seconds of the finished stages that did the same on a machine like this one."""
    asked = _work(record_of(recipe, stage))
    folders = (
        run for run in runs_folder().glob("*") if read_or_empty(run / "recipe.json").get("scale") == recipe.scale
    )
    manifests = (read_or_empty(run / stage / MANIFEST) for run in folders if (run / stage).is_dir())
    seconds = [found for manifest in manifests if (found := _seconds_of_same(manifest, asked)) is not None]
    return median(seconds) if seconds else None


def _seconds_of_same(manifest: dict[str, Any], asked: tuple[Any, ...]) -> float | None:
    """The seconds of a finished stage that did what is asked on a machine like this; None for any other, or none."""
    with suppress(KeyError, TypeError, AttributeError, ValueError):
        if _work(manifest) == asked and _machine(manifest["hardware"]) == _machine(hardware()):
            return float(manifest["seconds"])
    return None


def _work(record: dict[str, Any]) -> tuple[Any, ...]:
    """What the time of a stage depends on: everything but the seed and the content of its inputs."""
    inputs = {field: [parent["ref"] for parent in parents] for field, parents in record["inputs"].items()}
    return record["kind"], record["version"], {**record["settings"], "seed": None}, inputs


def _machine(record: dict[str, Any]) -> tuple[Any, ...]:
    """Which machine it was. The GPU is left out: the runner imports no torch and cannot name its own."""
    return tuple(record[name] for name in ("cpu", "cores", "memory_gib"))
