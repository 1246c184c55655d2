"""One writer at a time: of a run, and of the folder of a stage.

The kernel holds the lock (`flock`) for the process that opened the file and for none of its children, so it is free
the moment that process is dead, however it died: there is no lease to wait for and nothing to clean up.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import ResourceError

_log = logging.getLogger(__name__)

RETRY_S = 0.2
PATIENCE_S = 90.0
"""How long a run waits for a stage of a killed runner."""


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """One runner to a run: a second one says who has it, and leaves.

    Waits for the stage of a runner that was killed: told by the kernel, it finishes its step, saves and leaves.
    """
    with _locked(run_dir / ".lock", f"run '{run_dir.name}'"):
        for left in run_dir.glob(".*.lock"):
            with _locked(left, f"a stage of run '{run_dir.name}'", PATIENCE_S):
                pass
        yield


def stage_lock(run_dir: Path, stage: str) -> AbstractContextManager[None]:
    """One process to a stage."""
    return _locked(run_dir / f".{stage}.lock", f"stage {stage} of run '{run_dir.name}'")


def pack_lock(run_dir: Path) -> AbstractContextManager[None]:
    """One packing of a run, which may be at work meanwhile; no `.lock` that a run would wait for."""
    return _locked(run_dir / ".packing", f"the packing of run '{run_dir.name}'")


@contextmanager
def _locked(path: Path, what: str, patience_s: float = 0.0) -> Iterator[None]:
    """Holds the lock in the file `path`; a ResourceError that says who has it when it is not free in time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        sentence = f"{error.filename} cannot be written: {error.strerror}"
        raise ResourceError(sentence, hint="set R1_RUNS=FOLDER") from None
    with file:
        _acquire(file, what, time.monotonic() + patience_s)
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
        file.flush()
        yield


def _acquire(file: IO[str], what: str, deadline: float) -> None:
    said = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not said and deadline > time.monotonic():
                _log.warning("waiting: %s is still at work in %s", what, _holder(file))
                said = True
            if time.monotonic() >= deadline:
                hint = "wait for it, or name another run: RUN=another-name"
                raise ResourceError(f"{what} is at work in {_holder(file)}", hint=hint) from None
        except OSError as error:
            hint = "keep the runs on a disk of this machine with R1_RUNS=FOLDER"
            raise ResourceError(f"{file.name} cannot be locked: {error.strerror}", hint=hint) from None
        time.sleep(RETRY_S)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.load(file)
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it is just writing its name
        return "another process"
