"""The process of one stage: `python -m pipeline _stage RUN_FOLDER STAGE`, started by the runner.

Reads the run's `recipe.json`, makes the stage's files in `STAGE.partial/`, and publishes them as an artifact. What
goes wrong is left in `error.json` for the runner to tell.
"""

import os
import signal
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import disk, durable
from pipeline.artifact import Artifact, finish, is_whole, publish, read_json, write_json
from pipeline.card_rows import storable
from pipeline.doctor import recorded_forecast
from pipeline.errors import OutOfMemory, PipelineError, interrupt
from pipeline.lock import stage_lock
from pipeline.plan import STAMP, partial_folder
from pipeline.provenance import cards_used, environment, peak_memory
from pipeline.recipe import build_stage
from pipeline.stage import Follower, Inputs, Stage, Workdir

SCRATCH = ("checkpoints", STAMP, "progress.json", "error.json")
"""What lies in a partial folder and is no part of the artifact."""

# What Python, torch on a CPU, and torch, CUDA and cuBLAS on a GPU say of it.
_NO_MEMORY = ("MemoryError", "can't allocate memory", "OutOfMemoryError", "error: out of memory", "_ALLOC_FAILED")


def run_one(run_dir: Path, name: str) -> Artifact | None:
    """Makes and publishes one stage of a prepared run; PipelineErrors are left for the runner and raised.

    Of several processes (`launch.py`) the others help to make it, and the first one publishes it.
    """
    durable.process_name = name
    partial = partial_folder(run_dir, name)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        if int(os.environ.get("RANK", 0)):
            stage = _read_stage(run_dir, name)
            stage.run(Inputs(stage, run_dir), Follower(partial))
            return None
        with stage_lock(run_dir, name):
            return _make(run_dir, name, partial)
    except Exception as error:
        told = _sentence(error, partial)
        if told is None:
            raise
        if error.__cause__:  # the runner tells the sentence; the log keeps what led to it
            traceback.print_exception(error)
        _tell(partial, told)
        raise told from error


def _make(run_dir: Path, name: str, partial: Path) -> Artifact:
    final = run_dir / name
    if is_whole(partial):  # killed between its manifest and its name
        return finish(partial, final, SCRATCH)
    stamp, started = read_json(partial / STAMP), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    stage, work = _read_stage(run_dir, name), Workdir(partial)
    expected = recorded_forecast(stage, run_dir)  # before the work, so that it never costs a result
    metrics = stage.run(Inputs(stage, run_dir), work)
    record = {
        **stamp,
        "cards": cards_used(stage),
        **environment(),
        "started": started,
        "seconds": round(work.seconds, 2),
        **peak_memory(),
        "token_share": float(os.environ.get("R1_TOKEN_SHARE", 1)),
        "forecast": expected,
        "metrics": metrics,
    }
    return publish(partial, final, record, SCRATCH)


def _read_stage(run_dir: Path, name: str) -> Stage:
    settings: dict[str, Any] = dict(read_json(run_dir / "recipe.json")["stages"][name])
    return build_stage(name, settings.pop("kind"), settings)


def _sentence(error: Exception, partial: Path) -> PipelineError | None:
    """The error as one a user can mend; None for a bug of ours."""
    if isinstance(error, PipelineError):
        return error
    if any(words in f"{type(error).__name__}: {error}" for words in _NO_MEMORY):
        return OutOfMemory("the machine ran out of memory")
    return disk.failure(error, partial.parent, disk.bytes_in(partial), f"stage {partial.stem}")


def _tell(partial: Path, error: PipelineError) -> None:
    """Leaves the reason for the runner; on a full disk even that may fail, and the log has it anyway.

    Of several processes the first to fail is heard: the others fail because of it.
    """
    if (partial / "error.json").exists():
        return
    words = {"message": storable(error.message), "hint": storable(error.hint)}  # they may quote the user's data
    with suppress(OSError):
        write_json(partial / "error.json", {"type": type(error).__name__, **words})
