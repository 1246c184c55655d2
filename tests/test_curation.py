"""Curation at scale: the counts add up, all kinds are found, and processes change nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.card import load_card
from pipeline.sources import read_rows
from stages.chat import TEMPLATES
from stages.curation import Rules, curate
from stages.decontamination import Overlap

WORDS = [
    "river",
    "stone",
    "table",
    "seven",
    "window",
    "garden",
    "apple",
    "morning",
    "letter",
    "yellow",
    "bridge",
    "doctor",
    "engine",
    "flower",
]


def row(number: int, prompt: str = "", reasoning: str = "", response: str = "") -> dict[str, str]:
    said = " ".join(WORDS[(number * 7 + n * n) % len(WORDS)] + str(number + n) for n in range(20))
    made = TEMPLATES["chat"].response(reasoning or f"First {said}. Then it is done.", str(number))
    return {"id": str(number), "prompt": prompt or f"Tell of {said}.", "response": response or made, "language": "en"}


BENCHMARK = row(9000)["prompt"]
ROWS = [
    *map(row, range(300)),
    row(1000, prompt=row(5)["prompt"].upper()),
    row(1001, prompt=row(6)["prompt"].replace("Tell of", "Speak of")),
    row(1002, prompt=f"From a book: {BENCHMARK}"),
    row(1003, reasoning="```python\n1\n```"),
    row(1004, response="no tags at all"),
    row(1005, reasoning="我们先算 this 再算 that"),
    row(1006, prompt=BENCHMARK),
]
RULES = Rules()
EXPECTED = {"duplicate": 1, "near_duplicate": 1, "contaminated": 2, "code_blocks": 1, "not_well_formed": 1}


def kept(folder: Path) -> list[str]:
    return [found["id"] for file in sorted(folder.glob("*.parquet")) for found in read_rows(file)]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_every_kind_is_found_and_the_counts_add_up(num_processes: int, tmp_path: Path) -> None:
    counts = curate(ROWS, tmp_path, RULES, {"bench": [BENCHMARK]}, num_processes, shard_size=64)
    fates = counts["rows"]
    assert fates | EXPECTED | {"mixed_languages": 1} == fates
    assert fates["found"] == len(ROWS) == sum(fates.values()) - fates["found"]
    assert counts["benchmarks"] == {"bench": {"identical": 1, "10-gram": 1}}
    assert kept(tmp_path) == [str(number) for number in range(300)]
    assert len(list(tmp_path.glob("*.parquet"))) == 5


def test_without_filters_problems_go_through_too_and_rows_are_read_one_by_one(tmp_path: Path) -> None:
    taken = 0

    def problems() -> Iterator[dict[str, str]]:
        nonlocal taken
        for found in ROWS[:300]:
            taken += 1
            yield {name: found[name] for name in ("id", "prompt")}
            assert taken - len(kept(tmp_path)) <= 100  # what was read is soon on disk

    counts = curate(problems(), tmp_path, Rules(filters=None), {}, num_processes=1, shard_size=50)
    assert counts["rows"]["kept"] == 300


def test_no_row_at_all_leaves_no_file(tmp_path: Path) -> None:
    assert curate([], tmp_path, RULES, {"bench": [BENCHMARK]}, 1)["rows"]["found"] == 0
    assert not list(tmp_path.iterdir())


def test_a_killed_curation_leaves_no_process_behind(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "import itertools, multiprocessing, pathlib, sys\n"
        "from stages.curation import Rules, curate\n"
        "from tests.test_curation import row\n"
        "def rows():\n"
        "    for n in itertools.count():\n"
        "        if n == 2000: print(*[c.pid for c in multiprocessing.active_children()], flush=True)\n"
        "        yield row(n)\n"
        "if __name__ == '__main__': curate(rows(), pathlib.Path(sys.argv[1]), Rules(), {}, 2)\n"
    )
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout
    children = [int(pid) for pid in process.stdout.readline().split()]
    assert len(children) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while any(map(_lives, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_lives, children))


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_real_problems_are_found_in_the_competition_set_and_phrases_raise_no_alarm(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1_DATA", str(real_data))
    earlier = list(load_card("deepscaler").reading(real_data / "deepscaler" / "train_aime.json").stream("train"))
    held = [found["prompt"] for found in load_card("aime").rows("eval")]
    typeset = list(load_card("deepscaler").reading(real_data / "deepscaler" / "test_aime2024.json").stream("train"))
    counts = curate([*earlier, *typeset], tmp_path, Rules(filters=None), {"aime": held}, 1)
    assert counts["rows"]["contaminated"] == len(typeset) == 30
    assert counts["rows"]["kept"] + counts["rows"]["near_duplicate"] + counts["rows"]["duplicate"] == len(earlier)
    paper = Rules(filters=None, overlap=Overlap(coverage=0, max_problems=10**6))
    assert curate(earlier, tmp_path, paper, {"aime": held}, 1)["rows"]["contaminated"] > 200  # the false alarms


def test_the_six_math_500_problems_in_the_competition_set_are_found(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1_DATA", str(real_data))
    card = load_card("math_500")
    if card.lacks("eval"):
        pytest.skip(f"no MATH-500 at {real_data}/math_500/test*: the six known problems cannot be looked for")
    earlier = list(load_card("deepscaler").reading(real_data / "deepscaler" / "train_aime.json").stream("train"))
    held = [found["prompt"] for found in card.rows("eval")]
    counts = curate(earlier, tmp_path, Rules(filters=None), {"math_500": held}, 1)
    assert counts["benchmarks"]["math_500"]["identical"] == 6
    assert counts["rows"]["contaminated"] < 12
