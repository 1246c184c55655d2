"""Changes told problem by problem: where two models were asked the same, and only there."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline import report_tables
from pipeline.artifact import write_json
from pipeline.report_measures import Change, Measure, paired
from pipeline.report_run import ByProblem, read_run
from stages.measures import measure, paired_table, with_interval
from tests.test_evaluate import GOOD, judged
from tests.test_report import rewrite, written
from tests.toy_run import measures, write_toy_run

NUM = 500
HARD_AND_EASY = [float(i % 2) for i in range(NUM)]
A_LITTLE_BETTER = [1.0 if i % 50 == 0 else value for i, value in enumerate(HARD_AND_EASY)]  # ten more, none less


def measured(values: list[float], first: int = 0) -> Measure:
    """A figure over the problems `first`, `first` + 1, …"""
    return Measure.read(with_interval(values), {f"p{first + i}": value for i, value in enumerate(values)})


def change(before: Measure, after: Measure) -> Change:
    found = before.change_to(after)
    assert found is not None
    return found


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A toy run of which only the first evaluation knows its values by problem."""
    made = write_toy_run(tmp_path, curves=("reward",))
    write_values(made, "eval_base", HARD_AND_EASY)
    return made


def write_values(run_dir: Path, stage: str, values: list[float]) -> None:
    """Lets `stage` measure pass@1 as `values`, as an evaluation writes it; every other problem is of countdown."""
    share = with_interval(values)
    problems = {f"p{i} en 0": "arithmetic" if i % 4 < 2 else "countdown" for i in range(len(values))}
    rewrite(run_dir / stage / "metrics.json", json.dumps(measures(share["value"], 17, NUM) | {"pass_at_1": share}))
    table = {"problems": problems, "figures": {"pass_at_1": values}}
    (run_dir / stage / "by_problem.json").touch()
    rewrite(run_dir / stage / "by_problem.json", json.dumps(table))


def test_a_small_but_consistent_improvement_shows_on_the_same_problems_only() -> None:
    before, after = measured(HARD_AND_EASY), measured(A_LITTLE_BETTER)
    same, others = change(before, after), change(before, measured(A_LITTLE_BETTER, first=NUM))
    assert same.value == pytest.approx(0.02) and others.value == pytest.approx(0.02)
    assert (same.paired, same.sign) == (True, 1)
    assert (others.paired, others.sign) == (False, 0)
    assert change(after, before).sign == -1


def test_problems_are_matched_by_key_and_not_by_place() -> None:
    turned = measured(HARD_AND_EASY)
    turned = Measure(turned.value, turned.ci95, turned.n, dict(reversed(turned.by_problem.items())))
    assert change(measured(HARD_AND_EASY), turned).ci95 == pytest.approx((0, 0), abs=0.01)


def test_too_few_shared_problems_are_none() -> None:
    before = measured(HARD_AND_EASY)
    assert change(before, measured(HARD_AND_EASY, first=NUM // 4)).paired
    assert not change(before, measured(HARD_AND_EASY, first=NUM - 10)).paired
    assert not change(before, measured([1.0, 0.0])).paired, "two shared problems of five hundred"
    assert not change(before, Measure(0.5, (0.4, 0.6))).paired, "an older evaluation"


def test_equal_evaluations_show_no_change_and_claim_no_certainty() -> None:
    for values in (HARD_AND_EASY, [1.0] * NUM, [0.0] * 3):
        found = change(measured(values), measured(values))
        low, high = found.ci95
        assert found.value == found.sign == 0 and low < 0 < high
        assert high - low <= 6 / len(values)


@pytest.mark.parametrize(("better", "sign"), [(1, 0), (4, 0), (7, 1), (40, 1)])
def test_few_problems_that_differ_count_about_as_in_a_sign_test(better: int, sign: int) -> None:
    for size in (1.0, 0.25, 30.0):  # a share, one sample of four, tokens
        differences = (size,) * better + (0.0,) * (NUM - better)
        assert paired(differences).sign == sign
        assert paired(tuple(-d for d in differences)).sign == -sign


def test_the_value_lies_in_its_interval() -> None:
    for differences in ((1.0,), (1.0,) * 9, (0.5,) * 1000, (-30.0, -20.0), (0.0,)):
        found = paired(differences)
        assert found.ci95[0] <= found.value <= found.ci95[1]


def test_the_paired_interval_covers_the_change_as_often_as_it_says() -> None:
    draw, trials, covered = random.Random(0), 300, 0
    for _ in range(trials):
        levels = [draw.random() for _ in range(200)]
        differences = tuple(float((draw.random() < min(1, p + 0.1)) - (draw.random() < p)) for p in levels)
        low, high = paired(differences).ci95
        covered += low <= 0.095 <= high  # 0.1, less what stops at 1
    assert 0.92 <= covered / trials <= 0.98


# --- from file to report ---------------------------------------------------------------------------


def test_the_headline_the_star_and_the_changes_use_the_same_interval(run_dir: Path) -> None:
    def told() -> tuple[Any, ...]:
        found = written(run_dir)
        (one,) = (c for c in found["changes"] if c["metric"] == "pass_at_1")
        rows = report_tables.metric_rows(report_tables.columns_of(read_run(run_dir)))
        return one["paired"], one["sign"], rows[0]["cells"][1]["best"], " rose " in found["learned"]

    write_values(run_dir, "eval_r1_zero", A_LITTLE_BETTER)
    assert told() == (True, 1, True, True)
    assert "problem by problem" in (run_dir / "report.html").read_text(encoding="utf-8")
    (run_dir / "eval_r1_zero" / "by_problem.json").unlink()
    rewrite(run_dir / "eval_r1_zero" / "metrics.json", (run_dir / "eval_r1_zero" / "metrics.json").read_text())
    assert told() == (False, 0, False, False)
    assert "problem by problem" not in (run_dir / "report.html").read_text(encoding="utf-8")


def test_figures_without_values_by_problem_stay_unpaired(run_dir: Path) -> None:
    write_values(run_dir, "eval_r1_zero", A_LITTLE_BETTER)
    found = {c["metric"]: c["paired"] for c in written(run_dir)["changes"]}
    assert found.pop("pass_at_1") and found and not any(found.values())


def test_a_domain_is_compared_on_its_own_problems(run_dir: Path) -> None:
    (base, _) = read_run(run_dir).evaluations
    assert len(base.metrics["pass_at_1"].by_problem) == NUM
    shares = {name: found["pass_at_1"].by_problem for name, found in base.by_domain.items()}
    assert {name: len(values) for name, values in shares.items()} == {"arithmetic": 250, "countdown": 250}
    assert not shares["arithmetic"].keys() & shares["countdown"].keys()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"problems": 3}',
        '{"figures": {"pass_at_1": [1]}}',
        '{"problems": {"p0 en 0": "a"}, "figures": {"pass_at_1": [1, 2]}}',
        '{"problems": {"p0 en 0": "a"}, "figures": {"pass_at_1": [NaN], "maj_at_k": ["much"]}}',
    ],
)
def test_a_strange_file_leaves_the_changes_unpaired(run_dir: Path, text: str) -> None:
    write_values(run_dir, "eval_r1_zero", A_LITTLE_BETTER)
    rewrite(run_dir / "eval_r1_zero" / "by_problem.json", text)
    found = written(run_dir)["changes"]
    assert found and not any(c["paired"] for c in found)


def test_an_evaluation_writes_what_its_means_are_taken_of(tmp_path: Path) -> None:
    wrong = GOOD.replace(" 4 ", " 5 ")
    rows = judged(GOOD, wrong) + [{**row, "id": "p1"} for row in judged(wrong, "", domain="countdown")]
    rows += [{**row, "id": "p2"} for row in judged("blue", "4", domain="general", answer="blue", checker="exact")]
    write_json(tmp_path / "by_problem.json", paired_table(rows, 2))
    found = ByProblem.model_validate_json((tmp_path / "by_problem.json").read_text())
    assert list(found.problems.values()) == ["arithmetic", "countdown", "general"]
    assert list(found.values("pass_at_1").values()) == [0.5, 0.0]
    assert list(found.values("pass_at_1", "arithmetic").values()) == [0.5]
    assert found.figures["instruction_following"] == [None, None, 0.5]
    for name, share in measure(rows, 2, longest=96).items():
        values = found.values(name).values()
        assert len(values) == share["n"] and math.isclose(sum(values) / len(values), share["value"], abs_tol=1e-6)


def test_the_same_id_in_other_words_is_another_problem() -> None:
    rows = judged(GOOD) + [{**row, "prompt": "二加二?"} for row in judged(GOOD)]
    assert len(paired_table(rows, 1)["problems"]) == 2
