"""Signals, clocks and memory: what stops a stage from outside costs a sentence and no work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from pipeline import worker
from pipeline.artifact import checkpoints_in, is_whole, load
from pipeline.errors import Interrupted, OutOfMemory
from tests.conftest import TOY_CLI
from tests.test_machine import processes_with
from tests.test_pretrain import run as pretrain
from tests.test_pretrain import stage as pretrain_stage

SLOW = ["--args", "stages.data.n=600", "stages.data.pause_s=0.1"]  # a minute: on a busy machine the signal comes late


def at_work(toy: Path, *words: str) -> "subprocess.Popen[str]":
    """A run in the middle of its first stage, which hears SIGHUP even if these tests run under nohup."""
    command = ["env", "--default-signal=HUP", sys.executable, TOY_CLI, "run", "toy", *words]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    progress = toy / "runs/toy-mini/data.partial/progress.json"
    while not progress.exists() and run.poll() is None:
        time.sleep(0.02)
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_the_runner_stops_all_with_an_exit_code_of_its_own(toy, number):
    run = at_work(toy, *SLOW)
    run.send_signal(number)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 75
    assert "what was done is kept" in said and "Traceback" not in said
    assert not processes_with(str(toy))


def test_a_signal_to_the_stage_alone_stops_the_run_as_interrupted(toy):
    run = at_work(toy, *SLOW)
    [stage] = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if _is_stage(p, toy)]
    os.kill(stage, signal.SIGTERM)
    _, said = run.communicate(timeout=30)
    assert run.returncode == 75
    assert "stage data: stopped by a signal" in said


def _is_stage(cmdline: Path, toy: Path) -> bool:
    try:
        words = cmdline.read_bytes().decode().split("\0")
    except OSError:
        return False
    return "_stage" in words and any(str(toy) in word for word in words)


def test_a_killed_stage_is_a_failure_and_not_an_interruption(toy, r1):
    code, output = r1("run", "toy", "--args", "stages.data.trouble=killed")
    assert code == 2
    assert "stage data failed: it was killed\nhint: the whole story is in" in output


def test_pretraining_saves_at_a_signal_and_the_curves_have_no_seam(tmp_path, monkeypatch):
    from stages.engines import pretraining

    settings = {"log_steps": 3, "save_steps": 2, "num_steps": 8}
    pretrain(pretrain_stage(**settings), tmp_path / "whole")
    update = pretraining._update

    def signalled(*args):
        if args[3] == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(*args)

    monkeypatch.setattr(pretraining, "_update", signalled)
    with pytest.raises(Interrupted, match="after step 5"):
        pretrain(pretrain_stage(**settings), tmp_path / "cut")
    monkeypatch.setattr(pretraining, "_update", update)
    newest = checkpoints_in(tmp_path / "cut/checkpoints")[-1]
    assert newest.name == "checkpoint-5" and is_whole(newest)
    pretrain(pretrain_stage(**settings), tmp_path / "cut")
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def losses(folder: Path) -> list[tuple[int, float]]:
    from pipeline.stage import read_jsonl

    return [(row["step"], row["loss"]) for row in read_jsonl(folder / "metrics.jsonl")]


def test_a_stage_out_of_memory_is_tried_once_more_with_half_the_token_budget_and_that_is_recorded(toy, r1):
    code, output = r1("run", "toy", "--args", "stages.data.trouble=memory")
    assert code == 0
    assert "stage data: the machine ran out of memory; once more with half the token budget" in output
    manifest = load(toy / "runs/toy-mini/data").manifest
    assert manifest["token_share"] == 0.5
    assert Path(load(toy / "runs/toy-mini/data").path, "tries").read_text() == "xx"
    assert load(toy / "runs/toy-mini/model").manifest["token_share"] == 1.0


def test_a_stage_that_is_out_of_memory_twice_is_a_sentence(toy, r1):
    code, output = r1("run", "toy", "--args", "stages.data.trouble=always memory")
    assert code == 2
    assert "stage data: the machine ran out of memory\nhint: set a smaller token_budget" in output
    assert (toy / "runs/toy-mini/data.partial/tries").read_text() == "xx"


def cuda(words: str) -> None:
    """What torch says of a GPU's memory outside its own allocator: a context, cuBLAS, a graph that is replayed."""
    raise RuntimeError(words)


SHORTAGES: dict[str, Callable[[], object]] = {
    "Python": lambda: bytearray(2**62),
    "NumPy": lambda: numpy.empty(2**56, numpy.uint8),
    "torch on a CPU": lambda: torch.empty(2**60),
    "CUDA": lambda: cuda("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "cuBLAS": lambda: cuda("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}


@pytest.mark.parametrize("allocate", SHORTAGES.values(), ids=SHORTAGES)
def test_what_libraries_say_of_too_little_memory_is_understood(allocate, tmp_path):
    with pytest.raises(Exception) as raised:
        allocate()
    assert isinstance(worker._sentence(raised.value, tmp_path), OutOfMemory)


def test_a_smaller_share_lowers_every_token_budget_and_never_to_nothing(monkeypatch):
    from stages.engines.token_budget import lowered

    assert lowered(8192) == 8192
    monkeypatch.setenv("R1_TOKEN_SHARE", "0.5")
    assert (lowered(8192), lowered(1)) == (4096, 1)


def test_a_clock_that_jumps_back_or_ahead_changes_neither_the_work_nor_its_seconds(toy, r1):
    for jump in ("-86400", "86400"):
        code, _ = r1("run", "toy", "--run", f"jump{jump}", "--args", f"stages.data.trouble=clock {jump}")
        assert code == 0
        manifest = load(toy / f"runs/jump{jump}/data").manifest
        assert 0 <= manifest["seconds"] < 60
        assert r1("plan", "toy", "--run", f"jump{jump}")[1].count("done in") == 3
