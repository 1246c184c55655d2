"""The runner: one process per stage, a partial folder, an atomic publish.

The runner holds the run's lock, starts each stage as its own process in its own process group (`pipeline/worker.py`),
passes on its progress and sweeps up whatever it leaves behind. Memory is really given back, a time limit is real, and
a stage that is killed goes on where its last whole checkpoint stands.
"""

import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline import errors
from pipeline.artifact import Artifact, load, read_json, require_room, set_aside, write_json
from pipeline.errors import (
    ArtifactError,
    ConfigError,
    PipelineError,
    ReferenceError,
    ResourceError,
    StageFailed,
)
from pipeline.plan import STAMP, Line, make_plan, partial_folder, record_of, require_fresh
from pipeline.recipe import Recipe
from pipeline.settings import did_you_mean

WORKER = [sys.executable, "-m", "pipeline", "_stage"]
GRACE_S = 60.0
_ERROR = re.compile(r"\b(?:\w+\.)*\w*(?:Error|Exception): .+")
LEAST_ROOM = 64 * 2**20

Watch = Callable[[str, dict[str, Any]], None]  # (stage, content of progress.json) -> None


def prepare(recipe: Recipe, wanted: Collection[str], rebuild: Iterable[str] = ()) -> list[Line]:
    """Sets aside what is to be rebuilt, and refuses stale work among the wanted stages and what they rest on.

    Returns the plan of the whole recipe.
    """
    for name in rebuild:
        if name not in recipe.stages:
            raise ConfigError(f"REBUILD={name}: there is no such stage", hint=did_you_mean(name, recipe.stages))
        for dependent in recipe.dependents(name):
            for folder in (recipe.folder / dependent, partial_folder(recipe.folder, dependent)):
                if folder.is_dir():
                    set_aside(folder)
    lines, needed = make_plan(recipe), recipe.beneath(wanted)
    require_fresh((line for line in lines if line.stage in needed), recipe.run)
    return lines


def require_inputs(recipe: Recipe, todo: Iterable[str], done: Iterable[str]) -> None:
    """A ReferenceError when a stage to be made rests on one that is neither done nor made before it."""
    there = set(done)
    for name in todo:
        for _, ref in recipe.stages[name].references():
            if ref.scheme == "stage" and ref.target not in there:
                hint = f"make it first: make {recipe.name} UNTIL={ref.target}, with the same SCALE, RUN and ARGS"
                raise ReferenceError(f"stage {name} needs {ref.target}, which is not done", hint=hint)
        there.add(name)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """One writer per run. A dead process frees the lock at once, since the kernel holds it."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("a+")
    except OSError as error:
        raise ResourceError(f"{run_dir} cannot be written: {error.strerror}", hint="set R1_RUNS=FOLDER") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ResourceError(
                f"run '{run_dir.name}' is at work in process {file.read().strip() or 'unknown'}",
                hint="wait for it, or start another with RUN=another-name",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def run_in_process(recipe: Recipe, name: str, watch: Watch) -> Artifact:
    """One stage in its own process group; returns its artifact or raises what went wrong in it."""
    partial = _prepare_partial(recipe, name)
    log = recipe.folder / f"{name}.log"
    command = [*WORKER, str(recipe.folder), name]
    with log.open("ab") as output:
        begins = output.tell()
        child = start_child(command, output)
    try:
        _wait(child, partial, lambda progress: watch(name, progress))
    except BaseException:
        _stop(child)
        raise
    finally:
        _sweep(child.pid)
    if child.returncode:
        raise _failure(recipe, name, child.returncode, log, begins)
    return load(recipe.folder / name)


def _prepare_partial(recipe: Recipe, name: str) -> Path:
    """The stage's partial folder, stamped with what is being made; unfinished work of other settings is set aside."""
    partial, stamp = partial_folder(recipe.folder, name), record_of(recipe, name)
    try:
        require_room(recipe.folder, LEAST_ROOM)
        if partial.is_dir():
            with suppress(ArtifactError):
                if read_json(partial / STAMP)["fingerprint"] == stamp["fingerprint"]:
                    (partial / "error.json").unlink(missing_ok=True)
                    return partial
            set_aside(partial)
        partial.mkdir(parents=True)
        write_json(partial / STAMP, stamp)
    except OSError as error:
        raise ResourceError(f"{partial} cannot be written: {error.strerror}", hint="set R1_RUNS=FOLDER") from None
    return partial


def start_child(
    command: list[str], output: IO[bytes], environment: dict[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Starts `command` in its own process group; it ends when we end."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    """In a child, before it starts: end when the parent ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait(child: "subprocess.Popen[bytes]", partial: Path, report: Callable[[dict[str, Any]], None]) -> None:
    while True:
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.25)
            return
        with suppress(ArtifactError):
            report(read_json(partial / "progress.json"))


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """Lets the stage save and leave; ends it when it does not."""
    with suppress(ProcessLookupError):
        child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _sweep(child.pid)
        child.wait()


def _sweep(group: int) -> None:
    """Ends what is left of a stage's process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _failure(recipe: Recipe, name: str, code: int, log: Path, begins: int) -> PipelineError:
    """What a stage says of its own end, or what its log says from the byte `begins` on."""
    told = partial_folder(recipe.folder, name) / "error.json"
    if told.exists():
        record = read_json(told)
        kind = getattr(errors, record["type"], StageFailed)
        return kind(f"stage {name}: {record['message']}", record["hint"])
    lines = log.read_bytes()[begins:].decode(errors="replace").strip().splitlines()
    reason = "it was killed (out of memory?)" if code == -signal.SIGKILL else _last_words(lines) or f"exit {code}"
    return StageFailed(f"stage {name} failed: {reason}", hint=f"the whole story is in {log}; the same command resumes")


def _last_words(lines: list[str]) -> str:
    """The last error that a log names, else its last line: libraries say goodbye after they have failed."""
    errors = [found.group() for line in lines if (found := _ERROR.search(line))]
    return [*lines[-1:], *errors][-1] if lines else ""
