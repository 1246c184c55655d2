"""Every byte of a run's finished work against its manifests: `make verify RUN=NAME`.

At every use sizes are compared, and the sha256 of files up to 1 MiB. Here it is the sha256 of all of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifact import damage, read_json, read_manifest
from pipeline.errors import ArtifactError


class Verified(NamedTuple):
    """One finished stage; `damage` is empty when every file is as it was made."""

    stage: str
    num_files: int
    num_bytes: int
    damage: list[str]


def verify(run_dir: Path) -> Iterator[Verified]:
    """Each finished stage of the run in order, as it is checked; ArtifactError when the run does not name them."""
    for stage in stages_named(run_dir):
        folder = run_dir / stage
        if folder.is_dir():
            yield _verified(folder)


def stages_named(run_dir: Path) -> dict[str, Any]:
    """Name -> settings, as the run's `recipe.json` has them; ArtifactError when it is missing, torn or names none."""
    hint = f"the run's own command writes it again: make RECIPE RUN={run_dir.name}, with its SCALE and ARGS"
    try:
        recipe = read_json(run_dir / "recipe.json")
    except ArtifactError as error:
        raise ArtifactError(error.message, hint) from None
    stages = recipe.get("stages") if isinstance(recipe, dict) else None
    if not isinstance(stages, dict):
        raise ArtifactError(f"{run_dir / 'recipe.json'} names no stages", hint)
    return stages


def mend(stage: str) -> str:
    """The hint for a damaged stage."""
    return f"REBUILD={stage} makes it and what rests on it again; the damaged folder is kept aside"


def _verified(folder: Path) -> Verified:
    try:
        files = read_manifest(folder)["files"]
    except ArtifactError as error:
        return Verified(folder.name, 0, 0, [error.message.removeprefix(f"{folder.parent}/")])
    return Verified(folder.name, len(files), sum(f["size"] for f in files.values()), damage(folder, deep=True))
