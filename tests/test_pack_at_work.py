"""A run is packed while it is at work: whatever it does meanwhile, the archive is whole and goes on elsewhere."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifact
from pipeline import pack as packing
from pipeline.artifact import (
    checkpoints_in,
    finish,
    is_whole,
    load,
    newest_checkpoint,
    publish,
    seal,
    set_aside,
    sha256,
    step_of,
    write_json,
)
from pipeline.errors import ResourceError
from pipeline.lock import pack_lock
from pipeline.pack import pack, unpack
from pipeline.plan import STAMP
from pipeline.stage import Inputs, Workdir, read_jsonl
from pipeline.worker import SCRATCH
from tests.conftest import TOY_CLI
from tests.toy_stages import Climb, save_number

RECIPE = "description: a toy\nstages:\n  data: {kind: count}\n  climb: {kind: climb}\n"
Run = subprocess.Popen[bytes]


@pytest.fixture
def climb(toy: Path) -> Iterator[Callable[..., Run]]:
    """Starts a run that makes `data` and takes ten seconds for `climb`; returns when a file of it is there."""
    (toy / "configs/recipes/climb.yaml").write_text(RECIPE)
    runs: list[Run] = []

    def start(until: str, *words: str) -> Run:
        command = [sys.executable, TOY_CLI, "run", "climb", "--args", "stages.climb.pause_s=0.25", *words]
        runs.append(subprocess.Popen(command, start_new_session=True))
        while not (toy / "runs/climb-mini/climb.partial" / until).exists():
            assert runs[0].poll() is None
            time.sleep(0.02)
        return runs[0]

    yield start
    for run in runs:
        run.kill()
        run.wait()


@pytest.mark.parametrize("save_steps", [1, 1000], ids=["from its checkpoint", "anew, as there is no checkpoint yet"])
def test_a_run_at_work_is_packed_goes_on_elsewhere_and_ends_with_the_same_sums(save_steps, toy, r1, climb, monkeypatch):
    until = "checkpoints/checkpoint-2/manifest.json" if save_steps == 1 else "metrics.jsonl"
    run = climb(until, f"stages.climb.save_steps={save_steps}")
    assert r1("pack", "climb-mini", "--file", str(toy / "climb.tar.gz"))[0] == 0
    assert run.poll() is None
    Climb().run(Inputs(Climb(), toy), Workdir(toy / "undisturbed"))
    monkeypatch.setenv("R1_RUNS", str(toy / "there"))
    assert r1("unpack", str(toy / "climb.tar.gz"))[0] == 0
    assert r1("run", "climb")[0] == 0
    made = load(toy / "there/climb-mini/climb", deep=True).manifest
    assert set(made["files"]) == {"config.json", "metrics.jsonl"}
    assert all(entry["sha256"] == sha256(toy / "undisturbed" / name) for name, entry in made["files"].items())
    assert made["metrics"]["begun_at"] >= 2 if save_steps == 1 else made["metrics"]["begun_at"] == 0


@pytest.fixture
def work(tmp_path: Path) -> Workdir:
    """A stage in the middle of its work, after step 2, behind a finished one."""
    run_dir = tmp_path / "runs/climb"
    (run_dir / "data.partial").mkdir(parents=True)
    (run_dir / "data.partial/rows.jsonl").write_text("{}\n")
    publish(run_dir / "data.partial", run_dir / "data", {"artifact": "dataset", "fingerprint": "d"})
    write_json(run_dir / "recipe.json", {"stages": {"data": {"kind": "sft"}, "climb": {"kind": "sft"}}})
    work = Workdir(run_dir / "climb.partial")
    write_json(work.path / STAMP, {"fingerprint": "f"})
    (work.path / ".progress.json.tmp").write_text("{")
    (run_dir / "climb.log").write_text("all is well")
    (run_dir / "climb.log").chmod(0o640)
    for step in (1, 2):
        take_step(work, step)
    return work


def take_step(work: Workdir, step: int) -> None:
    work.log(step, {"number": step})
    save_number(work.checkpoints / f"checkpoint-{step}", step)


def sealed(work: Workdir) -> None:
    (work.path / "adapter").mkdir()
    (work.path / "adapter/adapter_model.safetensors").write_text("weights")
    (work.path / "model.safetensors").write_text("merged weights")
    seal(work.path, {"artifact": "checkpoint", "fingerprint": "f"}, SCRATCH)


def rotated(work: Workdir) -> None:
    for step in (3, 4):
        take_step(work, step)


def published(work: Workdir) -> None:
    (work.path / "config.json").write_text("{}")
    publish(work.path, work.path.with_suffix(""), {"artifact": "checkpoint", "fingerprint": "f"}, SCRATCH)


def killed_before_its_name(work: Workdir) -> None:
    sealed(work)
    shutil.rmtree(work.checkpoints)


def rebuilt(work: Workdir) -> None:
    set_aside(work.path)
    set_aside(work.path.with_name("data"))
    rotated(Workdir(work.path))


def at(step: int, folder: str = "climb.partial") -> Callable[[Path], None]:
    """The run stands at this step, with its curves and one checkpoint."""

    def check(run_dir: Path) -> None:
        [found] = (run_dir / folder / "checkpoints").iterdir()
        assert is_whole(found) and step_of(found) == step
        assert read_jsonl(run_dir / folder / "metrics.jsonl")[-1]["step"] >= step

    return check


def is_published(run_dir: Path) -> None:
    assert load(run_dir / "climb", deep=True) and not (run_dir / "climb.partial").exists()


def only_its_name_is_missing(run_dir: Path) -> None:
    assert is_whole(run_dir / "climb.partial")


def both_are_there(run_dir: Path) -> None:
    at(4)(run_dir)
    at(2, "climb.partial.old1")(run_dir)
    assert load(run_dir / "data.old1", deep=True) and not (run_dir / "data").exists()


EVENTS = {
    rotated: {"climb.partial": at(4), "data": at(2)},
    published: {"climb.partial": is_published, "data": is_published},
    killed_before_its_name: {"climb.partial": only_its_name_is_missing, "data": at(2)},
    rebuilt: {"climb.partial": both_are_there, "data": both_are_there},
}


@pytest.mark.parametrize("looked_at", ["climb.partial", "data"])
@pytest.mark.parametrize("happens", EVENTS, ids=lambda event: event.__name__)
def test_what_the_run_does_while_pack_looks_at_a_stage_tears_nothing(
    happens: Callable[[Workdir], None],
    looked_at: str,
    work: Workdir,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = [happens]

    def looked(checkpoints: Path) -> Any:
        found = newest_checkpoint(checkpoints)
        if checkpoints.parent.name == looked_at and events:
            events.pop()(work)
        return found

    monkeypatch.setattr(packing, "newest_checkpoint", looked)
    EVENTS[happens][looked_at](unpack(pack(work.path.parent, tmp_path / "x.tar.gz"), tmp_path / "there"))
    assert not events


def test_checkpoints_that_all_went_while_pack_looked_are_not_taken_for_none(
    work: Workdir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [rotated]

    def listed(checkpoints: Path) -> list[Path]:
        found = checkpoints_in(checkpoints)
        if found and events:
            events.pop()(work)
        return found

    monkeypatch.setattr(artifact, "checkpoints_in", listed)
    at(4)(unpack(pack(work.path.parent, tmp_path / "x.tar.gz"), tmp_path / "there"))
    assert not events


@pytest.mark.parametrize("happens", EVENTS, ids=lambda event: event.__name__)
def test_what_the_run_does_after_the_moment_that_is_packed_changes_nothing(
    happens: Callable[[Workdir], None], work: Workdir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_one_moment = packing._at_one_moment

    def held(run_dir: Path, *others: Any) -> Any:
        files = at_one_moment(run_dir, *others)
        happens(work)
        (run_dir / "climb.log").write_text("")
        shutil.rmtree(run_dir)
        return files

    monkeypatch.setattr(packing, "_at_one_moment", held)
    there = unpack(pack(work.path.parent, tmp_path / "x.tar.gz"), tmp_path / "there")
    at(2)(there)
    assert load(there / "data", deep=True) and (there / "climb.log").read_text() == "all is well"
    assert (there / "climb.log").stat().st_mode & 0o777 == 0o640
    assert not list(there.rglob(".*"))


def test_checkpoints_that_come_and_go_and_files_that_change_tear_nothing(work: Workdir, tmp_path: Path) -> None:
    is_over = threading.Event()

    def go_on() -> None:
        for step in count(3):
            take_step(work, step)
            (work.path / "config.json").write_text("x" * (step % 2 * 500_000))
            if is_over.is_set():
                return

    stage = threading.Thread(target=go_on)
    stage.start()
    try:
        for number in range(10):
            run_dir = unpack(pack(work.path.parent, tmp_path / "x.tar.gz"), tmp_path / str(number))
            [checkpoint] = (run_dir / "climb.partial/checkpoints").iterdir()
            at(step_of(checkpoint))(run_dir)
            assert step_of(checkpoint) >= 2
    finally:
        is_over.set()
        stage.join()


def test_weights_that_a_stage_is_just_writing_stay_behind_and_those_it_has_sealed_travel(
    work: Workdir, tmp_path: Path
) -> None:
    (work.path / "model.safetensors").write_text("merged wei")
    there = unpack(pack(work.path.parent, tmp_path / "x.tar.gz"), tmp_path / "at work")
    assert not (there / "climb.partial/model.safetensors").exists()
    sealed(work)
    there = unpack(pack(work.path.parent, tmp_path / "x.tar.gz"), tmp_path / "sealed")
    final = finish(there / "climb.partial", there / "climb", SCRATCH)
    assert load(final.path, deep=True).manifest["files"]["model.safetensors"]


def test_a_killed_packing_leaves_nothing_in_the_run_and_the_next_one_packs(work: Workdir, tmp_path: Path) -> None:
    def dies() -> None:
        os.environ["R1_KILL_AT"] = "runner/fsync:1"  # everything is written, nothing is flushed
        pack(work.path.parent, tmp_path / "out/x.tar.gz")

    def there() -> set[Path]:
        return {*work.path.parent.rglob("*")} - {work.path.parent / ".packing"}

    (tmp_path / "out").mkdir()
    before = there()
    process = multiprocessing.get_context("fork").Process(target=dies)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert there() == before and not (tmp_path / "out/x.tar.gz").exists()
    pack(work.path.parent, tmp_path / "out/x.tar.gz")
    assert there() == before and [path.name for path in (tmp_path / "out").iterdir()] == ["x.tar.gz"]


def test_a_second_packing_of_a_run_says_who_has_it_and_changes_nothing(work: Workdir, tmp_path: Path) -> None:
    whole = pack(work.path.parent, tmp_path / "x.tar.gz").read_bytes()
    with (
        pack_lock(work.path.parent),
        pytest.raises(ResourceError, match="packing of run 'climb' is at work"),
    ):
        pack(work.path.parent, tmp_path / "x.tar.gz")
    assert (tmp_path / "x.tar.gz").read_bytes() == whole


def test_a_run_that_never_holds_still_is_a_sentence(
    work: Workdir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = count()
    monkeypatch.setattr(packing, "_folders", lambda run_dir: next(number))
    monkeypatch.setattr(packing, "RETRY_S", 0.0)
    with pytest.raises(ResourceError, match="run 'climb' changed 20 times while it was packed"):
        pack(work.path.parent, tmp_path / "x.tar.gz")
    assert not list(tmp_path.glob("*x.tar.gz*"))
