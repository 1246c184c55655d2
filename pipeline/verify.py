"""Every byte of a run's finished work against its manifests: `make verify RUN=NAME`.

At every use sizes are compared, and the sha256 of files up to 1 MiB. Here it is the sha256 of all of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.artifact import damage, read_json, read_manifest
from pipeline.errors import ArtifactError


class Verified(NamedTuple):
    """One finished stage; `damage` is empty when every file is as it was made."""

    stage: str
    num_files: int
    num_bytes: int
    damage: list[str]


def verify(run_dir: Path) -> Iterator[Verified]:
    """Each finished stage of the run in order, as it is checked."""
    written = read_json(run_dir / "recipe.json")
    stages = written.get("stages") if isinstance(written, dict) else None
    if not isinstance(stages, dict):
        hint = "the command that made the run writes it again"
        raise ArtifactError(f"{run_dir / 'recipe.json'} does not name the run's stages", hint)
    for stage in stages:
        folder = run_dir / stage
        if folder.is_dir():
            yield _verified(folder)


def _verified(folder: Path) -> Verified:
    try:
        files = read_manifest(folder)["files"]
    except ArtifactError as error:
        return Verified(folder.name, 0, 0, [error.message])
    return Verified(folder.name, len(files), sum(f["size"] for f in files.values()), damage(folder, deep=True))
