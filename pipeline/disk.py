"""The disk: asked for room before a stage starts, and what is said when it fails in the middle."""

import errno
import shutil
from pathlib import Path

from pipeline.errors import ResourceError

LEAST_ROOM = 64 * 2**20
"""Bytes that any stage may need: curves, sampled texts, tokenizer."""
HARDLY_ANY = 2**20
"""Bytes below which a disk may have been too full even for an error message."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What safetensors (Rust) and torch (C++) say instead of raising an OSError.
_FULL_WORDS = (
    *("no space left on device", "os error 28", "disk quota exceeded"),
    *("pytorchstreamwriter failed writing", "unexpected pos"),
)
_ELSEWHERE = "or keep the runs on another disk with R1_RUNS=FOLDER; the same command resumes"


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """A ResourceError when the disk below `folder` has less left than `what` is expected to write there."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ResourceError(
            f"{what} needs about {_mib(needed_bytes)} MiB on the disk of {folder}, which has {_mib(free)} MiB free "
            f"({_mib(needed_bytes - free)} MiB missing)",
            hint=f"free some space, {_ELSEWHERE}",
        )


def failure(error: BaseException, folder: Path, needed_bytes: int, what: str) -> ResourceError | None:
    """An error of the machine as one a user can mend; None if it is none.

    `what` was being written below `folder`, and needs so many bytes in all.
    """
    if is_full(error):
        return full(folder, needed_bytes, what)
    if not isinstance(error, OSError):
        return None
    if error.filename is None:
        return ResourceError(str(error) or type(error).__name__, hint="mend that; the same command resumes")
    return ResourceError(f"{error.strerror}: {error.filename}", hint=f"mend that, {_ELSEWHERE}")


def full(folder: Path, needed_bytes: int, what: str) -> ResourceError:
    """What to say when the disk below `folder` ran full."""
    free = shutil.disk_usage(folder).free
    return ResourceError(
        f"the disk of {folder} ran full: {what} needs about {_mib(needed_bytes)} MiB, {_mib(free)} MiB are free "
        f"({_mib(max(needed_bytes - free, 0))} MiB missing); what was whole before is kept",
        hint=f"free some space, {_ELSEWHERE}",
    )


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that the disk or a quota is full."""
    while error is not None:
        words = str(error).lower()
        if getattr(error, "errno", None) in _FULL or any(said in words for said in _FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def bytes_in(folder: Path) -> int:
    """The size of all files below `folder`; 0 when it is not there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.0f}" if num_bytes >= 10 * 2**20 else f"{num_bytes / 2**20:.1f}"
