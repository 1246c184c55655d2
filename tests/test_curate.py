"""Curation as a stage: every row is counted once, rules leave out what they say, a dry run counts what a run does."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.dry_run import dry_run
from pipeline.errors import DataError
from pipeline.recipe import load_recipe
from pipeline.refs import Ref
from pipeline.stage import Workdir
from stages.chat import TEMPLATES
from stages.curate import FATES, Curate
from stages.curated_card import SAYS
from stages.dataset import write_parquet
from stages.questions import FAILS, Questions

Rows = list[dict[str, str]]


def problem(number: int, prompt: str = "", **of: str) -> dict[str, str]:
    row = {"id": f"p{number}", "prompt": prompt or f"How much is {number} and one more?", "answer": str(number + 1)}
    return {**row, "checker": "math", "domain": "math", "language": "en", **of}


def demo(number: int, reasoning: str = "we add them", **of: str) -> dict[str, str]:
    row = problem(number, **of)
    del row["answer"], row["checker"]
    return {**row, "response": TEMPLATES["chat"].response(reasoning, str(number + 1))}


class Sources:
    """Stands in for `pipeline.stage.Inputs`: rows of some references, evaluation sets, and a folder of pass rates."""

    def __init__(self, *sources: Rows, held: Rows | None = None, folder: Path | None = None) -> None:
        self.sources, self.held, self.rates = sources, held or [], folder

    def streams(self, field: str, limit: int | None = None) -> Iterator[tuple[Ref, Iterator[dict[str, str]]]]:
        for number, rows in enumerate(self.sources):
            yield Ref("path", f"source{number}"), iter(rows[:limit])

    def rows_by_source(self, field: str, limit: int | None = None) -> list[tuple[Ref, Rows]]:
        return [(Ref("path", "held"), self.held)]

    def folder(self, field: str) -> Path:
        assert self.rates
        return self.rates


def stage(**settings: Any) -> Curate:
    return Curate(**{"sources": ["path:source0"], "num_processes": 1, **settings})


def curated(folder: Path, inputs: Sources, **settings: Any) -> tuple[Rows, dict[str, Any]]:
    """The rows that are left, and `counts.json`."""
    stage(**settings).run(inputs, Workdir(folder))  # type: ignore[arg-type]
    files = sorted((folder / "rows").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()], json.loads(
        (folder / "counts.json").read_text()
    )


def fates(counts: dict[str, Any]) -> dict[str, int]:
    return {name: number for name, number in counts["rows"].items() if number}


def test_every_row_is_counted_once_and_the_source_that_is_named_first_keeps_it(tmp_path: Path) -> None:
    first = [problem(1), problem(2, "As shown in the figure, how long is $AB$?"), problem(3)]
    second = [problem(3), problem(4), problem(5, "The dog and the cat of the man next door, how many legs have they?")]
    inputs = Sources(first, second, held=[second[2]])
    rows, counts = curated(tmp_path, inputs, questions=Questions(), decontaminate=["path:held"])
    assert [(row["id"], row["source"]) for row in rows] == [
        ("p1", "path:source0"),
        ("p3", "path:source0"),
        ("p4", "path:source1"),
    ]
    assert fates(counts) == {"found": 6, "figure": 1, "duplicate": 1, "contaminated": 1, "kept": 3}
    assert counts["sources"] == {"path:source0": {"found": 3, "kept": 2}, "path:source1": {"found": 3, "kept": 1}}
    assert counts["benchmarks"]["path:held"]["identical"] == 1 and counts["num_prompts"] == 3
    card = (tmp_path / "README.md").read_text()
    assert "| mathematics: it points at a figure, or holds one | 1 | 5 |" in card
    assert "| an evaluation set holds it | 1 | 3 |" in card


def test_every_fate_has_words_for_the_card() -> None:
    assert set(FATES) - set(SAYS) == {"found"}


def test_a_killed_stage_begins_again_without_what_it_had_written(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_parquet(tmp_path / "rows" / "part-00007.parquet", [[{"id": "old"}]], {"id": "string"})
    rows, _ = curated(tmp_path, Sources([problem(1)]))
    assert [row["id"] for row in rows] == ["p1"]


def test_what_a_model_solves_is_left_out_by_the_rates_of_another_stage(tmp_path: Path) -> None:
    measured = [{"prompt": problem(n)["prompt"], "pass_rate": rate} for n, rate in ((1, 0.0), (2, 0.25), (3, None))]
    write_parquet(tmp_path / "problems.parquet", [measured], {"prompt": "string", "pass_rate": "double"})
    inputs = Sources([problem(n) for n in (1, 2, 3, 4)], folder=tmp_path)
    rows, counts = curated(tmp_path / "out", inputs, pass_rates="stage:weak", max_pass_rate=0.0)
    assert [row["id"] for row in rows] == ["p1"]
    assert fates(counts) == {"found": 4, "too_easy": 1, "unknown_pass_rate": 2, "kept": 1}


def test_demos_solved_one_to_three_times_of_32_are_kept(tmp_path: Path) -> None:
    demos = [demo(n, pass_rate=str(n / 32)) for n in range(6)]
    rows, counts = curated(tmp_path, Sources(demos), min_pass_rate=0.03125, max_pass_rate=0.09375)
    assert [row["id"] for row in rows] == ["p1", "p2", "p3"]
    assert fates(counts) == {"found": 6, "too_hard": 1, "too_easy": 2, "kept": 3}


def test_several_demos_of_a_problem_may_stay_and_make_no_phrase_of_what_they_ask(tmp_path: Path) -> None:
    long = "A farmer has twelve cows and sells three of them on market day, how many are left in the barn?"
    demos = [demo(1, f"way {n}", prompt=f"Tell me: {long}") for n in range(16)]
    no_dedup = {"dedup": {"exact": False, "fuzzy": None}}
    rows, _ = curated(tmp_path / "kept", Sources(demos), **no_dedup)
    assert len(rows) == 16
    with pytest.raises(DataError, match=r"no row is left \(found 16, contaminated 16\)"):
        curated(tmp_path / "held", Sources(demos, held=[problem(1, long)]), decontaminate=["path:held"], **no_dedup)


def test_duplicates_may_be_looked_for_in_some_domains_only(tmp_path: Path) -> None:
    twice = [problem(1), problem(1), problem(2, domain="code"), problem(2, domain="code")]
    rows, counts = curated(tmp_path, Sources(twice), dedup_domains=["math", "science"])
    assert [row["id"] for row in rows] == ["p1", "p2", "p2"] and fates(counts)["duplicate"] == 1


def test_problems_and_demos_in_one_stage_and_rules_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"path:source1: 1 of the 1 rows read are bad \(no response 1\)"):
        curated(tmp_path / "a", Sources([demo(1)], [problem(1)]))
    with pytest.raises(DataError, match="1 of the 1 rows read are bad"):
        curated(tmp_path / "b", Sources([{"text": "x"}]))
    with pytest.raises(DataError, match="the data set is empty"):
        curated(tmp_path / "c", Sources([problem(1)], []))
    for about_responses in ({"filters": {}}, {"select": {"quality": {}}}):
        with pytest.raises(DataError, match="about responses, and problems have none"):
            curated(tmp_path / "d", Sources([problem(1)]), **about_responses)
    with pytest.raises(ValueError, match="no row lies between"):
        stage(min_pass_rate=0.5, max_pass_rate=0.1)


def test_bad_rows_are_counted_and_do_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torn = {"id": "p7", "prompt": "Half of it is"}
    odd = [demo(n, pass_rate=rate) for n, rate in ((20, "often"), (21, "NaN"), (22, "7"), (23, ""))]
    rows, counts = curated(
        tmp_path, Sources([torn, *(demo(n, pass_rate="0.5") for n in range(8)), *odd]), max_pass_rate=0.5
    )
    assert len(rows) == 8
    assert fates(counts) == {"found": 13, "bad": 1, "unknown_pass_rate": 4, "kept": 8}
    assert "1 of 13 rows are bad" in caplog.text and "Half of it is" in caplog.text


@pytest.mark.parametrize("num_processes", [1, 2])
def test_processes_change_nothing(tmp_path: Path, num_processes: int) -> None:
    rows, counts = curated(tmp_path, Sources([problem(n % 150) for n in range(300)]), num_processes=num_processes)
    assert [row["id"] for row in rows] == [f"p{n}" for n in range(150)] and counts["rows"]["duplicate"] == 150


# --- questions --------------------------------------------------------------------------------------------

MATHS = [
    ("In the figure below, find $AB$.", "figure"),
    ("Find the area as shown. [asy] draw((0,0)); [/asy]", "figure"),
    ("Label this point 3. (See figure.) Which number is at 1993?", "figure"),
    ("Find the image of $z$ under a rotation, a two-digit figure.", None),
    ("A picture of a circle is on each card in a deck. How many cards are there?", None),
    ("Every card has a picture of one shape. Find the number of sets.", None),
    ("The graph of $y=x^2$ meets the line where? Lines are drawn through $P$.", None),
    ("(a) Find $x$. (b) What is $y$?", "several_parts"),
    ("a) Is it even? b) Determine all $n$.", "several_parts"),
    ("Part (a): find $x$. Part (b): find $y$.", "several_parts"),
    ("Find all $n$ so that (i) $n$ is odd, and (ii) $2n+79$ is a square.", None),
    ("If $f(a) = 3$, find $f(b)$.", None),
    ("(A) 1 (B) 2 (C) 3. Which of them is prime?", None),
    ("Prove that there is no largest prime.", "proof"),
    ("Let $n > 1$. Show that $n^2 > n$.", "proof"),
    ("In what year will the census show that fewer than 10% are left?", None),
    ("Find the least such $n$, or show that there is none.", None),
]
TESTED = json.dumps({"prompt": "def f(x):", "test": "def check(candidate): assert candidate(1)", "entry_point": "f"})
CODE = [
    ({"prompt": "Sort. See https://a.b/c " + "x" * 200}, "link"),
    ({"prompt": "Sort a list."}, "too_short"),
    ({"prompt": "Sort a list. " + "x" * 200, "answer": "{}"}, "no_tests"),
    ({"prompt": "Sort a list. " + "x" * 200}, None),
]


@pytest.mark.parametrize(("prompt", "reason"), MATHS)
def test_mathematics_must_be_one_question_that_can_be_read_and_checked(prompt: str, reason: str | None) -> None:
    assert Questions().reason_to_drop(problem(1, prompt)) == reason
    assert Questions().reason_to_drop(problem(1, prompt, domain="science")) is None
    assert Questions(figures=False, parts=False, proofs=False).reason_to_drop(problem(1, prompt)) is None


@pytest.mark.parametrize(("row", "reason"), CODE)
def test_code_must_be_long_enough_without_links_and_have_tests(row: dict[str, str], reason: str | None) -> None:
    full = {**problem(1), "domain": "code", "checker": "code", "answer": TESTED, **row}
    assert Questions().reason_to_drop(full) == reason
    assert Questions(links=False, min_code_chars=None, tests=False).reason_to_drop(full) is None


@pytest.mark.parametrize("piece", ["(a) find ", "part a: find ", "see the figure", "in the ", "![", "![](", "\n", "\0"])
def test_a_question_of_a_megabyte_takes_less_than_two_seconds(piece: str) -> None:
    begun = time.process_time()
    for domain in ("math", "code"):
        Questions().reason_to_drop(problem(1, piece * (1_000_000 // len(piece)), domain=domain))
    assert time.process_time() - begun < 2.0


def test_each_rule_has_a_switch_of_its_own() -> None:
    assert sum(map(len, FAILS.values())) == len(Questions.model_fields)


def test_the_rules_leave_the_competitions_alone_that_can_be_read_without_a_figure(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.card import load_card

    monkeypatch.setenv("R1_DATA", str(real_data))
    rows = list(load_card("deepscaler").reading(real_data / "deepscaler" / "train_aime.json").stream("train"))
    _, counts = curated(tmp_path, Sources(rows), questions=Questions())
    assert fates(counts) == {"found": 975, "figure": 96, "kept": 879}


# --- a dry run --------------------------------------------------------------------------------------------

RECIPE = """
description: curates, then trains
stages:
  questions:
    kind: curate
    sources: [card:mini_arithmetic, card:mini_countdown]
    num_rows: 60
    num_processes: 1
    decontaminate: [card:mini_arithmetic]
    select: {mix: {arithmetic: 0.75, countdown: 0.25}}
  answers: {kind: rejection_sampling, model: path:models/mini-base, problems: [stage:questions], num_samples: 3}
  demos: {kind: curate, sources: [stage:answers]}
  model: {kind: sum, data: stage:questions}
"""


def test_a_dry_run_counts_what_the_run_then_does_and_leaves_nothing(toy: Path, r1: Any) -> None:
    (toy / "configs/recipes/toy.yaml").write_text(RECIPE)
    recipe = load_recipe("toy", "mini")
    counted = dict(dry_run(recipe, list(recipe.stages)))
    assert not list((toy / "runs").iterdir())
    assert list(counted) == ["questions", "answers", "demos"]
    assert counted["answers"]["problems"]["sampled"] == 80 and counted["answers"]["samples"] == {"sampled": 240}
    assert counted["demos"] == "not counted: it rests on answers, and that needs a model"
    code, said = r1("run", "toy", "--dry-run", "--until", "questions")
    assert code == 0 and "rows: found 120, bad 0, duplicate 0" in said and "answers" not in said
    assert r1("run", "toy", "--engine", "plain", "--until", "questions")[0] == 0
    assert json.loads((toy / "runs/toy-mini/questions/counts.json").read_text()) == counted["questions"]
    assert dict(dry_run(recipe, ["questions"])) == {"questions": counted["questions"]}


def test_a_dry_run_that_counts_nothing_says_so_and_goes_with_no_rebuild(toy: Path, r1: Any) -> None:
    code, said = r1("run", "toy", "--dry-run", "--from", "model")
    assert code == 0 and "toy has none of them to be made" in said
    code, said = r1("run", "toy", "--dry-run", "--rebuild", "model")
    assert code == 2 and "DRY_RUN makes nothing, so REBUILD has no sense beside it" in said
