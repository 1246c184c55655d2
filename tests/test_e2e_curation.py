"""The recipes whose data are chosen, from end to end in small: the mini base teaches itself."""

import json
from pathlib import Path

import pytest

from pipeline.artifact import load
from tests.test_e2e_r1_full import run

BASE = "path:models/mini-base"
SMALL = ["evaluate.num_problems=10", "evaluate.num_samples=1", "sft.max_steps=3"]
LIMO = [
    f"stages.strong_answers.model={BASE}",
    "stages.weak_answers.num_problems=40",
    "stages.hard_problems.num_rows=40",
]
OPENTHOUGHTS = [f"stages.answers.model={BASE}", "stages.questions.num_rows=12"]


@pytest.mark.long
@pytest.mark.parametrize(("recipe", "more"), [("limo", LIMO), ("openthoughts", OPENTHOUGHTS), ("open-r1-distill", [])])
def test_the_recipe_runs_to_its_end_and_every_row_is_accounted_for(
    recipe: str, more: list[str], tmp_path: Path
) -> None:
    done = run(tmp_path, recipe, *SMALL, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    made = tmp_path / f"{recipe}-mini"
    for folder in (folder for folder in made.iterdir() if (folder / "counts.json").exists()):
        rows = json.loads((folder / "counts.json").read_text()).get("rows")
        assert rows is None or (rows["found"] == sum(rows.values()) - rows["found"] and rows["kept"] > 0)
    trained = load(made / recipe.replace("-", "_"))
    assert trained.manifest["metrics"]["num_demos"] > 1
    assert "pass_at_1" in load(made / f"eval_{recipe.replace('-', '_')}").manifest["metrics"]
    if recipe == "limo":
        assert json.loads((made / "hard_problems/counts.json").read_text())["rows"]["too_easy"] > 10
