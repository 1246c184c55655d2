"""The whole chain, small: every stage of r1-full, distill and ablations on the mini base, with few steps and rows."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from filelock import FileLock

pytestmark = pytest.mark.long
ROOT = Path(__file__).parent.parent
SMALL = [
    *("grpo.max_steps=2", "stages.final_rl.max_steps=5", "grpo.num_problems=8", "grpo.num_generations=4"),
    *("evaluate.num_problems=6", "evaluate.num_samples=1"),
    *("rejection_sampling.num_problems=60", "rejection_sampling.filters.mixed_languages=0.1"),
    *("sft.max_steps=2", "sft.num_samples_shown=1", "reward_model.max_steps=2", "reward_model.num_preferences=60"),
]


def run(folder: Path, recipe: str, *words: str, part: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipeline", "run", recipe, "--engine", "plain", *part, "--args", *words]
    environment = os.environ | {"R1_RUNS": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with one whole run, `r1-full-mini`; made once for all of pytest's processes."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = tmp_path_factory.getbasetemp().parent / f"whole-chain-{session}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "r1-full-mini/report.json").exists():
            done = run(folder, "r1-full", *SMALL)
            assert done.returncode == 0, done.stderr
    return folder


def test_every_stage_of_the_chain_is_done_and_the_report_stands_beside_the_paper(runs):
    folder = runs / "r1-full-mini"
    report = json.loads((folder / "report.json").read_text())
    assert {stage["state"] for stage in report["stages"]} == {"done"}
    assert report["changes"], "no change between neighbouring models is told"
    assert "AIME" in (folder / "report.html").read_text()
    assert "apache-2.0" in (folder / "final_rl/README.md").read_text()


def test_preference_rewards_and_general_prompts_enter_in_the_last_23_percent_of_final_rl(runs):
    curve = [json.loads(line) for line in (runs / "r1-full-mini/final_rl/metrics.jsonl").read_text().splitlines()]
    has_preferences = ["reward/helpfulness" in row or "reward/harmlessness" in row for row in curve]
    assert has_preferences == [False] * 4 + [True]


def test_distillation_and_ablations_start_from_the_results_of_the_whole_chain(runs):
    student = ["stages.student.num_steps=2", "stages.student.num_texts=300", "stages.student.batch_rows=4"]
    assert run(runs, "mini-student", *student).returncode == 0
    of_rl = [word for word in SMALL if word.startswith(("grpo", "evaluate"))]
    of_sft = [word for word in SMALL if word.startswith("sft")]
    for recipe, stage, settings in (
        ("distill", "student_sft", of_rl + of_sft),
        ("ablations", "reasoning_rl_mixed", of_rl),
    ):
        done = run(runs, recipe, *settings, part=["--from", stage, "--until", f"eval_{stage}"])
        assert done.returncode == 0, done.stderr
        report = json.loads((runs / f"{recipe}-mini/report.json").read_text())
        assert {s["name"] for s in report["stages"] if s["state"] == "done"} == {stage, f"eval_{stage}"}
