"""Training checkpoints that are whole or not there.

A checkpoint is `checkpoint-STEP/` in the stage's `work.checkpoints`: weights or adapter (safetensors),
optimiser, scheduler, random state and trainer state. It counts only when it has been sealed
(`pipeline.artifact.seal`: every file flushed, then a manifest with every sha256). A resume takes the newest
whole one and deletes what a kill left torn.
"""

import re
import shutil
from pathlib import Path

from pipeline.artifact import is_whole, seal

KEPT = 2


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after `step` updates lies (transformers' own name for it)."""
    return checkpoints / f"checkpoint-{step}"


def step_of(folder: Path) -> int:
    """The number of updates behind a checkpoint folder."""
    return int(folder.name.rpartition("-")[2])


def newest_whole(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint, or None; torn ones that are newer are deleted."""
    for folder in reversed(_all(checkpoints)):
        if is_whole(folder):
            return folder
        shutil.rmtree(folder)
    return None


def seal_and_rotate(folder: Path) -> None:
    """Seals a finished checkpoint; only then are older ones deleted, so that one whole one always exists."""
    seal(folder)
    for old in _all(folder.parent)[:-KEPT]:
        shutil.rmtree(old)


def _all(checkpoints: Path) -> list[Path]:
    """Oldest first."""
    found = [p for p in checkpoints.glob("checkpoint-*") if p.is_dir() and re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=step_of)
