"""The report of r1-full: every stage beside the paper and beside another run, its data sets and reward models."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import report, report_lineage, report_paper, report_tables
from pipeline.report_measures import Measure
from pipeline.report_run import Run, StageRecord, read_run
from pipeline.report_tables import Column
from tests.test_report import Page, rewrite, states, written
from tests.toy_run import measures, write_full_run, write_toy_run

DISAGREED = ((0.2, "Dev1"), (0.8, "Dev2"))  # AlpacaEval 2.0 rose there, ArenaHard fell


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished r1-full with a finished r1-zero called toy beside it."""
    folder = tmp_path_factory.mktemp("full")
    write_toy_run(folder, curves=("reward",))
    return write_full_run(folder, beside="toy")


def test_models_stand_in_the_order_of_the_recipe_with_the_papers_scores_under_them(full: Path) -> None:
    columns = report_tables.columns_of(read_run(full))
    assert [c.model for c in columns] == [
        *("base", "r1_zero", "cold_start", "reasoning_rl", "second_sft", "final_rl"),
    ]
    assert [c.paper for c in columns] == ["", "R1-Zero", "Dev1", "Dev2", "Dev3", "R1"]
    rows = {row["label"]: row for row in report_tables.metric_rows(columns)}
    aime, math500 = rows["pass@1: a single answer is right"]["paper"]
    assert aime == {"name": "AIME 2024, pass@1", "scores": [None, 77.9, 59.0, 74.0, 78.1, 79.8]}
    assert math500["scores"][1:] == [95.9, 94.2, 95.9, 95.4, 97.3]
    assert {"maj@k: the commonest of k answers is right", "harmless requests refused"} <= set(rows)


def test_every_change_has_a_sign_and_stands_beside_the_papers(full: Path) -> None:
    found = {(c["to"], c["metric"]): c for c in written(full)["changes"] if c["from_run"] is None}
    fell = found["cold_start", "pass_at_1"]
    assert (fell["from"], fell["sign"], fell["verdict"]) == ("r1_zero", -1, "as in the paper")
    assert [(p["name"], p["points"]) for p in fell["paper"]] == [("AIME", -18.9), ("MATH-500", -1.7)]
    assert found["final_rl", "helpfulness"]["verdict"] == "as in the paper"
    assert found["second_sft", "pass_at_1"]["verdict"] == "no change shown"
    assert found["reasoning_rl", "language_consistency"]["paper"] == [{"name": "§3.2.1", "sign": 1, "points": None}]
    assert found["r1_zero", "pass_at_1"]["verdict"] is None, "the paper's table has no base model"


def test_a_change_against_the_paper_is_called_one(tmp_path: Path) -> None:
    run_dir = write_full_run(tmp_path)
    rewrite(run_dir / "eval_cold_start" / "metrics.json", json.dumps(measures(0.95, 40, 400)))
    found = {(c["to"], c["metric"]): c["verdict"] for c in written(run_dir)["changes"]}
    assert found["cold_start", "pass_at_1"] == "against the paper"
    assert "against the paper" in (run_dir / "report.html").read_text(encoding="utf-8")


def test_the_papers_benchmarks_may_disagree() -> None:
    before, after = (Column("m", {"helpfulness": Measure(v, (v - 0.01, v + 0.01))}, paper=p) for v, p in DISAGREED)
    (change,) = report_tables.changes([(before, after)])
    assert change["verdict"] == "both ways"


def test_stages_in_another_order_than_the_papers_stand_for_none_of_its_models() -> None:
    assert report_paper.models_of(["base", "r1_zero", "reasoning_rl"]) == {"r1_zero": "R1-Zero", "reasoning_rl": "Dev2"}
    assert report_paper.models_of(["cold_start", "r1_zero"]) == {}


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says() -> None:
    draw, trials, covered = random.Random(0), 400, 0
    for _ in range(trials):
        one, other = (sum(draw.random() < p for _ in range(200)) / 200 for p in (0.5, 0.6))
        ends = [(v, 1.96 * math.sqrt(v * (1 - v) / 200)) for v in (one, other)]
        before, after = (Measure(v, (v - half, v + half)) for v, half in ends)
        low, high = before.change_to(after).ci95  # type: ignore[union-attr]
        covered += low <= 0.1 <= high
    assert 0.92 <= covered / trials <= 0.98


def test_a_run_beside_is_shown_and_its_like_stages_are_compared(full: Path) -> None:
    found = written(full)
    assert found["beside"]["run"] == "toy"
    assert found["beside"]["models"]["r1_zero"]["pass_at_1"]["value"] == 0.842
    assert {(c["from"], c["to"]) for c in found["changes"] if c["from_run"] == "toy"} == {("r1_zero", "r1_zero")}
    page = (full / "report.html").read_text(encoding="utf-8")
    assert "of toy" in page and "Against the same stage of toy" in page
    assert any("eval_r1_zero of toy differs from eval_base in" in note for note in found["notes"])


def test_a_stage_of_an_ablation_stands_beside_the_one_its_name_begins_like() -> None:
    whole = {"recipe": "r1-full", "scale": "mini", "seed": 0, "description": "", "notes": []}
    measured = {"pass_at_1": Measure(0.5, (0.4, 0.6))}

    def run(name: str, stages: list[str], **more: Any) -> Run:
        found = [StageRecord(f"eval_{s}", "evaluate", "done", settings={"model": f"stage:{s}"}) for s in stages]
        return Run(path=Path(name), name=name, stages=[replace(s, metrics=measured) for s in found], **whole, **more)

    other = run("full", ["reasoning_rl", "reasoning"])
    steps = report_tables.steps_beside(run("without", ["reasoning_rl_mixed", "alone"], beside=other))
    assert [(before.model, after.model) for before, after in steps] == [("reasoning_rl", "reasoning_rl_mixed")]


def test_a_run_beside_that_is_not_there_yet_is_a_note(tmp_path: Path) -> None:
    found = written(write_full_run(tmp_path, beside="later"))
    assert "The run later, to be shown beside this one, is not there yet." in found["notes"]
    assert found["beside"] is None


def test_what_filters_dropped_and_what_reward_models_are_worth_is_shown(full: Path) -> None:
    run = read_run(full)
    (name, groups), _ = report_lineage.data_sets(run)
    assert name == "cold_start_data"
    assert groups["samples"] == [
        ("sampled", "7,880"),
        ("truncated", "40"),
        ("wrong", "3,011"),
        ("mixed languages", "912"),
        ("kept", "985"),
    ]
    assert groups["benchmarks"][0] == ("card:mini_arithmetic/eval: 10-gram", "2")
    assert groups["in all"] == [("mean pass rate", "0.53"), ("problems kept", "872")]
    models, facts = report_lineage.reward_models(run)
    assert models == ["helpfulness_model", "harmlessness_model"]
    assert ("correlation of score and length", ["0.21", "0.21"]) in facts
    page = Page(report.write_report(full).read_text(encoding="utf-8"))
    assert "mixed languages" in page.words and "pairs right 91.2 %" in page.words


def test_reward_hacking_becomes_a_note(tmp_path: Path) -> None:
    run_dir = write_full_run(tmp_path)
    with (run_dir / "final_rl" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 85, "alarm/suspicious": 1.0}) + "\n")
    (note,) = report.alarm_notes(read_run(run_dir))
    assert note.startswith("final_rl may be hacking its reward model: in 1 of 5 looks, first after step 85")


def test_a_change_that_the_saved_weights_cannot_hold_becomes_a_note(tmp_path: Path) -> None:
    run_dir = write_full_run(tmp_path)
    assert not report.rounding_notes(read_run(run_dir))
    manifest = json.loads((run_dir / "r1_zero/manifest.json").read_text())
    manifest["metrics"] |= {"merge_effect": 3e-4, "merge_kept": 0.43}
    (run_dir / "r1_zero/manifest.json").write_text(json.dumps(manifest))
    [note] = report.rounding_notes(read_run(run_dir))
    assert note.startswith("r1_zero changed its model by so little (0.0003 nats a token) that rounding kept 43% of it")


def test_an_unfinished_full_run_shows_what_there_is(tmp_path: Path) -> None:
    found = written(write_full_run(tmp_path, without=("final_rl", "eval_final_rl", "reasoning_data")))
    assert states(found).count("to do") == 3
    assert {c["to"] for c in found["changes"]} == {"r1_zero", "cold_start", "reasoning_rl", "second_sft"}
