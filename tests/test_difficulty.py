"""Learning only from problems that are solved sometimes."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DataError
from pipeline.recipe import build_stage
from stages.dataset import write_parquet
from stages.difficulty import read_pass_rates, within
from stages.rejection_sampling import PROBLEM

SETTINGS = {"model": "path:base", "problems": ["path:problems"]}
PROBLEMS = [{"id": f"p{i}", "prompt": f"{i}+{i}"} for i in range(5)]


def sampled(folder: Path, rates: list[float | None]) -> Path:
    """A folder as a rejection_sampling stage leaves it: problem `i` was solved in this share of the samples."""
    rest = {"domain": "arithmetic", "language": "en", "num_right": 0, "num_samples": 4, "kept": 0}
    rows = [{**problem, **rest, "pass_rate": rate} for problem, rate in zip(PROBLEMS, rates, strict=False)]
    write_parquet(folder / "problems.parquet", [rows], PROBLEM)
    return folder


def test_problems_solved_too_seldom_too_often_or_never_sampled_are_left_out(tmp_path):
    rates = read_pass_rates(sampled(tmp_path, [0.0, 0.25, 1.0, None]))
    assert [p["id"] for p in within(PROBLEMS, rates, 0.1, 0.9)] == ["p1"]
    assert [p["id"] for p in within(PROBLEMS, rates, 0.0, 1.0)] == ["p0", "p1", "p2"]


def test_nothing_left_is_one_sentence(tmp_path):
    rates = read_pass_rates(sampled(tmp_path, [0.0, 0.0]))
    with pytest.raises(DataError, match=r"none of 5 problems has a pass rate from 0.1 to 1"):
        within(PROBLEMS, rates, 0.1, 1.0)


def test_a_folder_without_rates_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="nothing says how hard its problems are"):
        read_pass_rates(tmp_path)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"min_pass_rate": 0.1}, "need `pass_rates`"),
        ({"pass_rates": "path:x", "min_pass_rate": 0.9, "max_pass_rate": 0.1}, "min_pass_rate 0.9 is above"),
    ],
)
def test_bounds_that_make_no_sense_are_refused_when_the_recipe_loads(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_stage("r1_zero", "grpo", SETTINGS | given)
