"""The process of one stage: `python -m pipeline _stage RUN_FOLDER STAGE`, started by the runner.

Reads the run's `recipe.json`, makes the stage's files in `STAGE.partial/`, and publishes them as an artifact. What
goes wrong is left in `error.json` for the runner to tell.
"""

import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.artifact import Artifact, publish, read_json, write_json
from pipeline.errors import Interrupted, PipelineError, ResourceError
from pipeline.plan import STAMP, partial_folder
from pipeline.provenance import cards_used, environment, peak_memory
from pipeline.recipe import build_stage
from pipeline.stage import Inputs, Workdir


def run_one(run_dir: Path, name: str) -> Artifact:
    """Makes and publishes one stage of a prepared run; PipelineErrors are left for the runner and raised."""
    partial = partial_folder(run_dir, name)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _make(run_dir, name, partial)
    except PipelineError as error:
        _tell(partial, error)
        raise
    except OSError as error:
        told = ResourceError(
            f"{error.strerror}: {error.filename or partial}", hint="mend that; the same command resumes"
        )
        _tell(partial, told)
        raise told from error


def _make(run_dir: Path, name: str, partial: Path) -> Artifact:
    stamp, started = read_json(partial / STAMP), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    settings: dict[str, Any] = dict(read_json(run_dir / "recipe.json")["stages"][name])
    stage, work = build_stage(name, settings.pop("kind"), settings), Workdir(partial)
    metrics = stage.run(Inputs(stage, run_dir), work)
    record = {
        **stamp,
        "cards": cards_used(stage),
        **environment(),
        "started": started,
        "seconds": round(work.seconds, 2),
        **peak_memory(),
        "metrics": metrics,
    }
    shutil.rmtree(work.checkpoints)
    for leftover in (STAMP, "progress.json", "error.json"):
        (partial / leftover).unlink(missing_ok=True)
    return publish(partial, run_dir / name, record)


def _interrupt(signum: int, frame: object) -> None:
    raise Interrupted("stopped by a signal; what was done is kept", hint="the same command goes on from here")


def _tell(partial: Path, error: PipelineError) -> None:
    """Leaves the reason for the runner; on a full disk even that may fail, and the log has it anyway."""
    record = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    with suppress(OSError):
        write_json(partial / "error.json", record)
