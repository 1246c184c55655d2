"""Files that are whole or not there, whatever ends the process or the machine.

Every flush and rename that the project counts on happens here, so that tests can end a process at any of them:

    R1_KILL_AT=final_rl/rename:3    SIGKILL the process of stage `final_rl` just before its third rename

The processes are the stages, by name, and the `runner`; the points are `fsync` and `rename`, `manifest` (the rename
that makes a checkpoint or artifact count) and `publish` (the rename of a whole folder).
"""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

MANIFEST = "manifest.json"

process_name = "runner"
_passed: Counter[str] = Counter()


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write (`w` or `wb`) that gets its name when everything is in it and on disk; else it is not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            _point("fsync")
            os.fsync(file.fileno())
        rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise


def rename(old: Path, new: Path) -> None:
    """Renames a file (over another, if there is one) or a folder, and flushes the folder around it."""
    _point("publish" if old.is_dir() else "manifest" if new.name == MANIFEST else "rename")
    old.rename(new)
    fsync(new.parent)


def fsync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk."""
    _point("fsync")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Whether `path` is what a process that died while writing left behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _point(kind: str) -> None:
    """Ends this process if R1_KILL_AT says so."""
    if wanted := os.environ.get("R1_KILL_AT"):
        _passed[kind] += 1
        if wanted == f"{process_name}/{kind}:{_passed[kind]}":
            os.kill(os.getpid(), signal.SIGKILL)
