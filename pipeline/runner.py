"""The runner: one process per stage, a partial folder, an atomic publish.

The runner holds the run's lock, starts each stage as its own process in its own process group (`pipeline/worker.py`),
passes on its progress and sweeps up whatever it leaves behind. Memory is really given back, a time limit is real, and
a stage that is killed goes on where its last whole checkpoint stands.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial as bound
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from pipeline import disk, errors
from pipeline.artifact import Artifact, is_whole, load, read_json, set_aside, write_json
from pipeline.disk import LEAST_ROOM
from pipeline.durable import is_temporary
from pipeline.errors import (
    ArtifactError,
    ConfigError,
    Interrupted,
    OutOfMemory,
    PipelineError,
    ReferenceError,
    StageFailed,
)
from pipeline.plan import STAMP, TO_DO, Line, make_plan, partial_folder, read_stamp, record_of, require_fresh
from pipeline.recipe import Recipe
from pipeline.settings import did_you_mean
from pipeline.stage import Inputs

WORKER = [sys.executable, "-m", "pipeline", "_stage"]
LAUNCHER = [sys.executable, "-m", "pipeline", "_launch"]
GRACE_S = 60.0
_ERROR = re.compile(r"(?<=^error: ).+|\b(?:\w+\.)*\w*(?:Error|Exception): .+")

Watch = Callable[[str, dict[str, Any]], None]  # (stage, content of progress.json) -> None


def made_again(recipe: Recipe, wanted: Collection[str], rebuild: Iterable[str]) -> list[str]:
    """The stages that REBUILD names with all that rest on them; a ConfigError where one is not wanted."""
    for name in rebuild:
        if name not in recipe.stages:
            raise ConfigError(f"REBUILD={name}: there is no such stage", hint=did_you_mean(name, recipe.stages))
        if name not in wanted:
            hint = f"leave FROM and UNTIL away, or let them hold it; they hold {', '.join(wanted)}"
            raise ConfigError(f"REBUILD={name}: this stage is not among those to be made", hint=hint)
    return list(dict.fromkeys(stage for name in rebuild for stage in recipe.dependents(name)))


def plan_with(recipe: Recipe, wanted: Collection[str], again: Collection[str]) -> list[Line]:
    """The plan of the whole recipe, in which the stages of `again` are to be made; nothing is touched.

    Refuses stale work among the wanted stages and what they rest on.
    """
    lines = [Line(line.stage, line.kind, TO_DO) if line.stage in again else line for line in make_plan(recipe)]
    needed = recipe.beneath(wanted)
    require_fresh((line for line in lines if line.stage in needed), recipe.run)
    return lines


def make_way(recipe: Recipe, again: Iterable[str]) -> None:
    """Sets aside what is to be made again; once nothing is left that could be refused."""
    for name in again:
        for folder in (recipe.folder / name, partial_folder(recipe.folder, name)):
            if folder.exists():
                set_aside(folder)


def require_inputs(recipe: Recipe, todo: Iterable[str], done: Iterable[str]) -> None:
    """A ReferenceError when a stage to be made rests on one that is neither done nor made before it."""
    there = set(done)
    for name in todo:
        for _, ref in recipe.stages[name].references():
            if ref.scheme == "stage" and ref.target not in there:
                hint = f"make it first: make {recipe.name} UNTIL={ref.target}, with the same SCALE, RUN and ARGS"
                raise ReferenceError(f"stage {name} needs {ref.target}, which is not done", hint=hint)
        there.add(name)


def run_in_process(
    recipe: Recipe, name: str, watch: Watch, say: Callable[[str], None], num_processes: int = 1
) -> Artifact:
    """One stage in its own process group; returns its artifact or raises what went wrong in it.

    A stage that spreads is made by `num_processes` together (`launch.py`). One that runs out of memory goes on once
    more from its last checkpoint, with half the token budget.
    """
    try:
        return _run_once(recipe, name, watch, num_processes)
    except OutOfMemory as error:
        say(f"{error.message}; once more with half the token budget")
    return _run_once(recipe, name, watch, num_processes, {"R1_TOKEN_SHARE": "0.5"})


def _run_once(
    recipe: Recipe, name: str, watch: Watch, num_processes: int, settings: Mapping[str, str] = MappingProxyType({})
) -> Artifact:
    partial, stage = _prepare_partial(recipe, name), recipe.stages[name]
    needed = max(LEAST_ROOM, stage.room_bytes(Inputs(stage, recipe.folder)) - disk.bytes_in(partial))
    disk.require_room(recipe.folder, needed, f"stage {name}")
    log, num_killed = recipe.folder / f"{name}.log", _killed_for_memory()
    with log.open("ab") as output:
        begins = output.tell()
        is_spread = num_processes > 1 and stage.spreads and not is_whole(partial)
        command = [*LAUNCHER, str(num_processes)] if is_spread else WORKER
        environment = dict(os.environ) if is_spread else _of_one_process()
        environment = {**stage.variables(), **environment, **settings}
        child = start_child([*command, str(recipe.folder), name], output, environment)
    try:
        _wait(child, partial, lambda progress: watch(name, progress))
    except BaseException:
        _stop(child)
        raise
    finally:
        _sweep(child.pid)
    if child.returncode == -signal.SIGKILL and _killed_for_memory() > num_killed:
        raise OutOfMemory(f"stage {name}: the kernel ended it, the machine ran out of memory")
    if child.returncode:
        raise _failure(recipe, name, child.returncode, _since(log, begins))
    return load(recipe.folder / name)


def _of_one_process() -> dict[str, str]:
    """The environment of a stage that one process makes: it is nobody's rank, whatever a cluster has set, and sees the
    first GPU alone, for transformers would cut a step's rows up among all it finds (DataParallel)."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return kept | {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]}


def _prepare_partial(recipe: Recipe, name: str) -> Path:
    """The stage's partial folder, stamped with what is being made; unfinished work of other settings is set aside."""
    partial, stamp = partial_folder(recipe.folder, name), record_of(recipe, name)
    if partial.is_dir() and not all(map(is_temporary, partial.iterdir())):
        with suppress(ArtifactError):
            if read_stamp(partial).get("fingerprint") == stamp["fingerprint"]:
                (partial / "error.json").unlink(missing_ok=True)
                return partial
        set_aside(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / STAMP, stamp)
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
        preexec_fn=bound(end_with, os.getpid()),
    )


def end_with(parent: int) -> None:
    """In a child, before it starts: end when the parent ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)


def _wait(child: "subprocess.Popen[bytes]", partial: Path, report: Callable[[dict[str, Any]], None]) -> None:
    while True:
        with suppress(subprocess.TimeoutExpired):
            child.wait(0.25)
            return
        with suppress(ArtifactError, OSError):
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


def _failure(recipe: Recipe, name: str, code: int, lines: list[str]) -> PipelineError:
    """What a stage says of its own end, or what the `lines` of its log say."""
    told = partial_folder(recipe.folder, name) / "error.json"
    if told.exists():
        record = read_json(told)
        kind = getattr(errors, record["type"], StageFailed)
        return kind(f"stage {name}: {record['message']}", record["hint"])
    if code == -signal.SIGTERM:  # before it could listen
        return Interrupted(f"stage {name} was stopped by a signal")
    if shutil.disk_usage(recipe.folder).free < disk.HARDLY_ANY:  # so full that the reason could not be left
        return disk.full(recipe.folder, LEAST_ROOM, f"stage {name}")
    reason = "it was killed" if code == -signal.SIGKILL else _last_words(lines) or f"exit {code}"
    hint = f"the whole story is in {recipe.folder / name}.log; the same command resumes"
    return StageFailed(f"stage {name} failed: {reason}", hint=hint)


def _since(log: Path, begins: int) -> list[str]:
    """The lines of a log from the byte `begins` on; none when it is gone."""
    with suppress(OSError):
        return log.read_bytes()[begins:].decode(errors="replace").strip().splitlines()
    return []


def _killed_for_memory() -> int:
    """How many processes the kernel has ended for want of memory since it started (Linux)."""
    with suppress(OSError, ValueError):
        words = Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    return 0


def _last_words(lines: list[str]) -> str:
    """The last error that a log names, else its last line: libraries say goodbye after they have failed."""
    errors = [found.group() for line in lines if (found := _ERROR.search(line))]
    return [*lines[-1:], *errors][-1] if lines else ""
