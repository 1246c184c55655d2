"""Prefect at the edge: it shows a run, decides nothing, and is not missed when it is not there."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from pipeline import flow
from pipeline.artifact import load
from tests.conftest import TOY_CLI
from tests.test_machine import processes_with


def server_of(run: "subprocess.Popen[Any]") -> psutil.Process:
    """Its Prefect server; other runs of this machine have theirs."""
    [server] = [child for child in psutil.Process(run.pid).children() if "uvicorn" in " ".join(child.cmdline())]
    return server


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_run_goes_on_without_prefect_when_its_server_does_not_come_up(toy, r1, monkeypatch):
    monkeypatch.setattr(flow, "start_child", lambda command, *rest: subprocess.Popen([sys.executable, "-c", "exit(3)"]))
    code, output = r1("run", "toy", "--engine", "prefect")
    assert code == 0
    assert "Prefect is not available (its server did not come up" in output
    assert load(toy / "runs/toy-mini/eval_model").manifest["metrics"]


def test_a_finished_run_does_not_start_prefect(toy, r1, monkeypatch):
    r1("run", "toy")
    monkeypatch.setattr(flow, "run_with_prefect", lambda *words: pytest.fail("Prefect was started"))
    assert r1("run", "toy", "--engine", "prefect")[0] == 0


def test_an_engine_that_does_not_exist_is_refused(toy, monkeypatch, r1):
    monkeypatch.setenv("ENGINE", "airflow")
    code, output = r1("run", "toy")
    assert code == 2
    assert "there is no engine 'airflow'" in output
    assert not list((toy / "runs").iterdir())


@pytest.mark.slow
def test_prefect_shows_every_stage_and_a_killed_run_leaves_no_server_behind(toy):
    command = [sys.executable, TOY_CLI, "run", "toy", "--engine", "prefect"]
    assert subprocess.run(command, timeout=200).returncode == 0
    with sqlite3.connect(toy / "runs/.prefect/prefect.db") as database:
        states = dict(database.execute("select name, state_name from task_run"))
        links = [data for (data,) in database.execute("select data from artifact where type = 'markdown'")]
    assert states == {"data": "Completed", "model": "Completed", "eval_model": "Completed"}
    assert any("report.html" in json.dumps(link) for link in links)
    assert not list((toy / "runs/.prefect").glob("storage/*"))  # no result, so nothing that would be unpickled

    slow = [*command, "--run", "second", "--args", "stages.data.pause_s=0.2", "stages.data.n=1000"]
    run = subprocess.Popen(slow, start_new_session=True)
    progress = toy / "runs/second/data.partial/progress.json"
    deadline = time.monotonic() + 150
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert progress.exists()
    server = server_of(run)
    run.send_signal(signal.SIGKILL)
    run.wait()
    time.sleep(2)
    assert not processes_with(str(toy))
    assert is_gone(server)


@pytest.mark.slow
def test_a_failure_is_one_sentence_with_prefect_too_and_no_pickled_result_is_kept(toy):
    command = [sys.executable, TOY_CLI, "run", "toy", "--engine", "prefect", "--args", "stages.data.trouble=data"]
    done = subprocess.run(command, timeout=200, capture_output=True, text=True)
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert said.count("stage data: ") == 1 and "Traceback" not in said, said
    assert "going on without it" not in said
    [kept] = (toy / "runs/.prefect/storage").glob("*")  # why the flow failed
    assert json.loads(kept.read_text())["__exc_type__"] == "pipeline.errors.DataError"


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_server_that_dies_or_hangs_in_the_middle_delays_a_run_and_loses_nothing(toy, number):
    slow = ["--args", "stages.data.pause_s=0.1", "stages.data.n=30"]
    command = [sys.executable, TOY_CLI, "run", "toy", "--engine", "prefect", *slow]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    progress = toy / "runs/toy-mini/data.partial/progress.json"
    while not progress.exists() and run.poll() is None:
        time.sleep(0.1)
    server = server_of(run)
    server.send_signal(number)
    try:
        said, _ = run.communicate(timeout=290)  # a server that hangs is given up after about two minutes
    finally:
        run.kill()
    assert run.returncode == 0, said
    assert "going on without it" in said
    assert load(toy / "runs/toy-mini/eval_model", deep=True)
    assert is_gone(server)


@pytest.mark.long
def test_two_runs_side_by_side_share_prefect_s_database_and_do_not_disturb_each_other(toy):
    command = [sys.executable, TOY_CLI, "run", "toy", "--engine", "prefect", "--args", "stages.data.n=20"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    runs = [subprocess.Popen([*command, "stages.data.pause_s=0.1", "--run", name], **pipes) for name in ("one", "two")]
    said = [run.communicate(timeout=280)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert not any("going on without it" in words or "locked" in words for words in said), said
    with sqlite3.connect(toy / "runs/.prefect/prefect.db") as database:
        states = database.execute("select state_name, count(*) from task_run group by state_name").fetchall()
    assert states == [("Completed", 6)]
