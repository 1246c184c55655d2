"""README's table "where to add" is true: in a copy of the project, each addition touches one place, and works."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pipeline.places import ROOT

FOLDERS = ("pipeline", "stages", "configs", "data_cards", "tests/golden")


class Copy:
    """The project in another folder, where things can be added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in FOLDERS:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self._before = self._texts()

    def _texts(self) -> dict[str, bytes]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def touched(self) -> set[str]:
        """Files that are new or other than before."""
        return {name for name, text in self._texts().items() if self._before.get(name) != text}

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def add_line(self, name: str, after: str, line: str) -> None:
        text = (self.folder / name).read_text(encoding="utf-8")
        assert text.count(after) == 1
        self.write(name, text.replace(after, after + line))

    def says(self, *words: str, **environment: str) -> str:
        """What a command prints; it must succeed."""
        done = self._run(words, environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refuses(self, *words: str) -> str:
        """What `r1` says of a mistake."""
        done = self._run((sys.executable, "-m", "pipeline", *words), {})
        assert done.returncode == 2, done.stderr
        return done.stderr

    def _run(self, words: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
        more = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(self.folder)}
        whole = {**os.environ, **more, **environment}
        return subprocess.run(words, cwd=self.folder, env=whole, capture_output=True, text=True)

    def r1(self, *words: str, **environment: str) -> str:
        return self.says(sys.executable, "-m", "pipeline", *words, **environment)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "copy")


def told(what: str) -> str:
    """Where README says that something is added."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"| {what} |"))


def test_a_data_set_is_one_folder(copy: Copy, tmp_path: Path) -> None:
    line = told("a data set")
    assert "one folder" in line and "`make card NAME=" in line and "`make card-check NAME=" in line
    data = tmp_path / "data" / "my_sums"
    data.mkdir(parents=True)
    rows = [{"question": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1)} for i in range(60)]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mirror = {"R1_DATA": str(tmp_path / "data")}
    said = copy.r1("card", "my_sums", "--file", str(data / "train.jsonl"))
    assert f"make card-check NAME=my_sums FILE={data / 'train.jsonl'}" in said
    assert "100.0% of" in copy.r1("card-check", "my_sums", "--file", str(data / "train.jsonl"))
    assert all(name.startswith("data_cards/my_sums/") for name in copy.touched())
    assert "100.0% of" in copy.r1("card-check", "my_sums", **mirror)
    assert "my_sums" in copy.r1("cards", **mirror)
    assert "card:my_sums" in copy.r1("show", "r1-zero", "--args", "stages.r1_zero.problems=[card:my_sums]", **mirror)


REWARD = '''"""Brevity: one word is best."""

from typing import Literal

from stages.rewards.reward import Reward, Sample


class Brevity(Reward):
    """1 for an answer of one word."""

    kind: Literal["brevity"] = "brevity"

    def score(self, sample: Sample) -> float:
        return float(len((sample.response.answer or "").split()) == 1)
'''


def add_reward(copy: Copy, text: str) -> None:
    copy.write("stages/rewards/brevity.py", text)
    table = "stages/rewards/__init__.py"
    copy.add_line(table, "import Accuracy\n", "from stages.rewards.brevity import Brevity\n")
    copy.add_line(table, "(Accuracy | Format", " | Brevity")


def test_a_reward_is_one_file_and_its_line_in_the_table(copy: Copy) -> None:
    assert "one file in `stages/rewards/` and its line in the table there" in told("a reward")
    add_reward(copy, REWARD)
    assert copy.touched() == {"stages/rewards/brevity.py", "stages/rewards/__init__.py"}
    assert "kind: brevity" in copy.r1("show", "r1-zero", "--args", "grpo.rewards=[{kind: brevity}]")
    code = (
        "from stages.rewards import *; from stages.chat import parse\n"
        "row = dict.fromkeys(('id', 'prompt', 'answer', 'checker', 'domain', 'language'), '')\n"
        "sample = Sample(row, parse('<think> x </think><answer> 42 </answer>'), 9, False, 99)\n"
        "print(score_many([REWARDS['brevity'](weight=2.0)], [sample])[0])"
    )
    assert copy.says(sys.executable, "-c", code) == "{'reward': 2.0, 'reward/brevity': 1.0}\n"


KIND = 'kind: Literal["brevity"] = "brevity"'
WRONG_REWARDS = {
    "no kind": (KIND, "", "the reward class Brevity does not say its kind"),
    "a kind that may be any text": (KIND, 'kind: str = "brevity"', "the reward class Brevity does not say its kind"),
    "a kind without its value": (KIND, 'kind: Literal["brevity"]', "the reward class Brevity does not say its kind"),
    "the kind of another": (
        KIND,
        'kind: Literal["format"] = "format"',
        "the kind 'format' of Brevity is that of Format in stages/rewards/format.py",
    ),
    "no score": ("def score", "def scores", "the reward class Brevity defines neither score nor score_many"),
}


@pytest.mark.parametrize(("right", "wrong", "says"), WRONG_REWARDS.values(), ids=WRONG_REWARDS.keys())
def test_a_reward_that_cannot_be_entered_in_the_table_is_one_sentence_with_its_file(
    right: str, wrong: str, says: str, copy: Copy
) -> None:
    add_reward(copy, REWARD.replace(right, wrong))
    said = copy.refuses("show", "r1-zero").splitlines()
    assert said[0] == f"error: stages/rewards/brevity.py: {says}" and said[1].startswith("hint: ") and len(said) == 2


STAGE = '''"""Counts the rows of a data set."""

from typing import Any, ClassVar

from pipeline.refs import METRICS, DatasetRef
from pipeline.stage import Inputs, Stage, Workdir


class CountRows(Stage):
    """How many rows there are."""

    kind: ClassVar[str] = "count_rows"
    makes: ClassVar[str] = METRICS
    data: list[DatasetRef]

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        found = {"num_rows": {"value": len(inputs.rows("data", limit=20))}}
        work.write_json("metrics.json", found)
        return found
'''
RECIPE = "description: How many sums there are\nstages: {rows: {kind: count_rows, data: scale:problems}}\n"


def test_a_stage_is_one_file_and_its_line_in_the_table_and_a_recipe_one_yaml_file(copy: Copy, tmp_path: Path) -> None:
    assert "one file in `stages/` and its line in the table there" in told("a stage")
    copy.write("stages/count_rows.py", STAGE)
    copy.add_line(
        "stages/__init__.py", "from pipeline.stage import Stage\n", "from stages.count_rows import CountRows\n"
    )
    copy.add_line("stages/__init__.py", "(Pretrain, ", "CountRows, ")
    assert copy.touched() == {"stages/count_rows.py", "stages/__init__.py"}

    assert "one YAML file in `configs/`, then `make golden`" in told("a recipe or a scale")
    copy.write("configs/recipes/how-many.yaml", RECIPE)
    runs = tmp_path / "runs"
    copy.r1("run", "how-many", "--engine", "plain", R1_RUNS=str(runs))
    assert json.loads((runs / "how-many-mini/rows/metrics.json").read_text()) == {"num_rows": {"value": 40}}
    assert "-- how-many" in copy.says("make", "-n", "how-many")  # every recipe is a verb


@pytest.mark.long
def test_a_recipe_and_a_scale_are_one_yaml_file_each_and_their_golden_texts(copy: Copy) -> None:
    copy.write("configs/recipes/my-recipe.yaml", "extends: r1-zero\nstages: {r1_zero: {max_steps: 7}}\n")
    copy.write("configs/scales/my-scale.yaml", "extends: qwen-0.5b\n")
    copy.says(sys.executable, "-m", "tests.golden")
    mine = {
        name
        for name in copy.touched()
        if name not in ("configs/recipes/my-recipe.yaml", "configs/scales/my-scale.yaml")
    }
    assert {"tests/golden/my-recipe@mini.yaml", "tests/golden/r1-zero@my-scale.yaml"} <= mine
    assert all(name.startswith("tests/golden/") and ("my-recipe@" in name or "@my-scale" in name) for name in mine)
