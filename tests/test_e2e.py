"""The main job, small: the real r1-zero on the real mini base, with few steps and problems."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.artifact import load, sha256
from pipeline.stage import read_jsonl
from tests.test_machine import processes_with

ROOT = Path(__file__).parent.parent
SMALL = ["grpo.max_steps=6", "grpo.save_steps=2", "grpo.num_problems=8", "grpo.num_generations=4"]
SMALL += ["evaluate.num_problems=20"]
COMMAND = [sys.executable, "-m", "pipeline", "run", "r1-zero", "--engine", "plain", "--args", *SMALL]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one whole run, `r1-zero-mini`."""
    folder = tmp_path_factory.mktemp("runs")
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"R1_RUNS": str(folder)}
    command = [*COMMAND[:5], *more, *COMMAND[5:]]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_r1_zero_measures_trains_measures_again_and_reports(runs):
    folder = runs / "r1-zero-mini"
    report = json.loads((folder / "report.json").read_text())
    assert [(s["name"], s["state"]) for s in report["stages"]] == [
        ("eval_base", "done"),
        ("r1_zero", "done"),
        ("eval_r1_zero", "done"),
    ]
    measured = report["stages"][0]["metrics"]
    assert {"pass_at_1", "format_rate", "language_consistency", "mean_response_tokens"} <= set(measured)
    low, high = measured["pass_at_1"]["ci95"]
    assert low <= measured["pass_at_1"]["value"] <= high
    assert [row["step"] for row in read_jsonl(folder / "r1_zero/metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert "<html" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_second_run_does_nothing_and_says_done_for_every_stage(runs):
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("manifest.json")}
    started = time.monotonic()
    again = run(runs)
    seconds = time.monotonic() - started
    assert again.stdout.count("done in") == 3
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("manifest.json")}
    assert seconds < 10  # under 3 s on a machine that does nothing else


@pytest.mark.slow
def test_a_run_killed_in_training_goes_on_to_the_same_weights_and_leaves_no_process(runs):
    environment = os.environ | {"R1_RUNS": str(runs)}
    command = [*COMMAND[:5], "--run", "killed", *COMMAND[5:]]
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    curve = runs / "killed/r1_zero.partial/metrics.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (curve.exists() and len(read_jsonl(curve)) >= 3):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    deadline = time.monotonic() + 30
    while processes_with(str(runs / "killed")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_with(str(runs / "killed"))
    assert run(runs, "--run", "killed").returncode == 0
    whole, resumed = (load(runs / name / "r1_zero").path / "model.safetensors" for name in ("r1-zero-mini", "killed"))
    assert sha256(whole) == sha256(resumed)
    rewards = [[row["reward"] for row in read_jsonl(path.parent / "metrics.jsonl")] for path in (whole, resumed)]
    assert rewards[0] == rewards[1]


@pytest.mark.slow
def test_cuda_on_a_machine_without_it_is_one_sentence_and_finished_work_stays(runs):
    fingerprint = load(runs / "r1-zero-mini/eval_base").fingerprint
    words = ["grpo.device=cuda", "stages.r1_zero.seed=5"]
    environment = os.environ | {"R1_RUNS": str(runs), "CUDA_VISIBLE_DEVICES": ""}
    command = [*COMMAND, *words, "--rebuild", "r1_zero"]
    failed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert failed.returncode == 2
    assert "has no GPU" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert load(runs / "r1-zero-mini/eval_base").fingerprint == fingerprint
