"""One writer: a run that is at work is left alone, and a dead one stands in nobody's way."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import lock
from pipeline.artifact import load
from pipeline.errors import ResourceError
from pipeline.lock import run_lock, stage_lock
from tests.conftest import TOY_CLI
from tests.test_machine import processes_with

SLOW = ("--args", "stages.data.n=300", "stages.data.pause_s=0.1")


@pytest.fixture
def at_work(toy: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A run in the middle of its first stage."""
    run = subprocess.Popen([sys.executable, TOY_CLI, "run", "toy", *SLOW], start_new_session=True)
    progress = toy / "runs/toy-mini/data.partial/progress.json"
    deadline = time.monotonic() + 60
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield run
    run.kill()
    run.wait()


def test_a_second_run_says_who_has_it_since_when_and_leaves(toy, r1, at_work):
    code, output = r1("run", "toy")
    assert code == 2
    assert f"run 'toy-mini' is at work in process {at_work.pid} on {socket.gethostname()} since 20" in output
    assert "RUN=another-name" in output
    assert at_work.poll() is None


def test_something_else_in_the_place_of_a_lock_is_named(tmp_path):
    (tmp_path / "run/.lock").mkdir(parents=True)
    said = r"run/\.lock cannot be written: Is a directory"
    with pytest.raises(ResourceError, match=said), run_lock(tmp_path / "run"):
        pass


def test_a_killed_run_is_free_at_once_and_its_stage_is_waited_for(toy, r1, at_work):
    at_work.kill()
    at_work.wait()
    began = time.monotonic()
    code, _ = r1("run", "toy", "--args", "stages.data.n=5")
    assert code == 0
    assert load(toy / "runs/toy-mini/data").manifest["metrics"] == {"rows": 5}
    assert time.monotonic() - began < 20
    assert not processes_with(str(toy))


def test_a_stage_that_a_killed_runner_left_does_not_write_into_the_work_of_the_next_run(toy, r1):
    left = [sys.executable, TOY_CLI, "run", "toy", "--args", "stages.data.trouble=deaf", "stages.data.n=40"]
    run = subprocess.Popen([*left, "stages.data.pause_s=0.1"], start_new_session=True)
    while not (toy / "runs/toy-mini/data.partial/late.txt").exists():
        time.sleep(0.02)
    run.kill()
    run.wait()
    code, output = r1("run", "toy", "--args", "stages.data.n=10", "stages.data.pause_s=0.1")
    assert code == 2
    assert "stage data of run 'toy-mini' is stale: n 40 → 10" in output  # it was waited for, and came to its end
    assert load(toy / "runs/toy-mini/data").manifest["metrics"] == {"rows": 40}


def test_two_different_runs_side_by_side_do_not_disturb_each_other(toy, r1, at_work):
    assert r1("run", "toy", "--run", "other")[0] == 0
    assert at_work.poll() is None


def test_a_stage_of_a_dead_runner_that_does_not_leave_is_named(tmp_path, monkeypatch):
    code = "from pipeline.lock import stage_lock; from pathlib import Path; import time\n"
    code += f"with stage_lock(Path({str(tmp_path)!r}), 'x'): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        monkeypatch.setattr(lock, "PATIENCE_S", 0.5)
        with pytest.raises(ResourceError, match=f"is at work in process {holder.pid} on "), run_lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    with run_lock(tmp_path):
        pass


def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path):
    with stage_lock(tmp_path, "x"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with stage_lock(tmp_path, "x"):
            assert json.loads((tmp_path / ".x.lock").read_text())["pid"] == os.getpid()
    finally:
        child.kill()
        child.wait()
