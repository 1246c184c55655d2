"""Training checkpoints that are whole or not there.

A checkpoint is `checkpoint-STEP/` in the stage's `work.checkpoints`: weights or adapter (safetensors), optimiser,
scheduler, random state and trainer state. It counts only when it has been sealed (`pipeline.artifact.seal`: every file
flushed, then a manifest with every sha256). A resume takes the newest whole one and deletes what a kill left torn.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import disk
from pipeline.artifact import checkpoints_in, newest_checkpoint, seal, step_of

__all__ = ["folder_of", "in_the_making", "newest_whole", "step_of"]

KEPT = 2
_log = logging.getLogger(__name__)


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after `step` updates lies (transformers' own name for it)."""
    return checkpoints / f"checkpoint-{step}"


def newest_whole(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint, or None; torn ones that are newer are named in the log and deleted."""
    newest, torn = newest_checkpoint(checkpoints)
    for folder, why in torn.items():
        _log.warning("%s is passed over: %s", folder.name, why)
        shutil.rmtree(folder)
    return newest


@contextmanager
def in_the_making(folder: Path, kept_step: int | None = None) -> Iterator[None]:
    """Seals the checkpoint that was written meanwhile; only then are older ones deleted, so that two always exist.

    The checkpoint of `kept_step` stays, however old it is. On a full disk a ResourceError says how much is missing,
    and what was written of this one is deleted: the one before stays.
    """
    try:
        yield
        seal(folder)
    except Exception as error:
        if not disk.is_full(error):
            raise
        size = max(map(disk.bytes_in, checkpoints_in(folder.parent)), default=0)
        shutil.rmtree(folder, ignore_errors=True)
        raise disk.full(folder.parent, size, folder.name) from error
    for old in checkpoints_in(folder.parent)[:-KEPT]:
        if step_of(old) != kept_step:
            shutil.rmtree(old)
