"""Training checkpoints that are whole or not there.

A checkpoint is `checkpoint-STEP/` in the stage's `work.checkpoints`: weights or adapter (safetensors),
optimiser, scheduler, random state and trainer state. It counts only when it has been sealed
(`pipeline.artifact.seal`: every file flushed, then a manifest with every sha256). A resume takes the newest
whole one and deletes what a kill left torn.
"""

import shutil
from pathlib import Path

from pipeline.artifact import checkpoints_in, newest_checkpoint, seal, step_of

__all__ = ["folder_of", "newest_whole", "seal_and_rotate", "step_of"]

KEPT = 2


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after `step` updates lies (transformers' own name for it)."""
    return checkpoints / f"checkpoint-{step}"


def newest_whole(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint, or None; torn ones that are newer are deleted."""
    newest = newest_checkpoint(checkpoints)
    for folder in checkpoints_in(checkpoints):
        if newest is None or step_of(folder) > step_of(newest):
            shutil.rmtree(folder)
    return newest


def seal_and_rotate(folder: Path, kept_step: int | None = None) -> None:
    """Seals a finished checkpoint; only then are older ones deleted, so that one whole one always exists.

    The checkpoint of `kept_step` stays, however old it is.
    """
    seal(folder)
    for old in checkpoints_in(folder.parent)[:-KEPT]:
        if step_of(old) != kept_step:
            shutil.rmtree(old)
