"""Data cards on toy sources: what they give, and what they say when something is wrong."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from pipeline import card as cards
from pipeline import card_table
from pipeline.card import bucket, canonical_id, list_cards, load_card, parse_card_ref
from pipeline.card_table import _source, cards_table
from pipeline.errors import CardError, DataError, ReferenceError
from pipeline.places import DATA_CARDS, ROOT

SUMS = [{"question": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(20) for b in range(20)]
BLOCK: dict[str, Any] = {
    "rows": "problem",
    "mirror": {"train": "sums.jsonl"},
    "columns": {"prompt": "question", "answer": "answer"},
    "constants": {"checker": "exact", "domain": "arithmetic", "language": "en"},
    "holdout": {"eval": 0.1},
}


class Toys:
    """Makes toy cards in one temporary folder and toy sources in another."""

    def __init__(self, folder: Path) -> None:
        self.cards, self.data = folder / "cards", folder / "data"
        self.data.mkdir()

    def card(
        self, name: str = "toy", prepare: str = "", front: dict[str, Any] | None = None, **block: Any
    ) -> cards.Card:
        folder = self.cards / name
        folder.mkdir(parents=True, exist_ok=True)
        whole = {"license": "mit", "r1": BLOCK | block} | (front or {})
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(whole)}---\n# {name}\n")
        if prepare:
            (folder / "prepare.py").write_text(prepare)
        return load_card(name)

    def source(self, rows: list[dict[str, Any]], file: str = "sums.jsonl") -> Path:
        path = self.data / file
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toys:
    made = Toys(tmp_path)
    monkeypatch.setenv("R1_CARDS", str(made.cards))
    monkeypatch.setenv("R1_DATA", str(made.data))
    made.source(SUMS)
    return made


def test_rows_have_exactly_the_columns_of_their_shape_and_all_are_text(toys: Toys) -> None:
    rows = toys.card().rows("train")
    assert {tuple(row) for row in rows} == {cards.COLUMNS["problem"]}
    assert all(isinstance(value, str) for row in rows for value in row.values())


def test_train_and_eval_together_are_the_source_and_share_nothing(toys: Toys) -> None:
    train, held_out = ({row["id"] for row in toys.card().rows(split)} for split in ("train", "eval"))
    assert not train & held_out
    assert len(train) + len(held_out) == len(SUMS)
    assert 0.05 < len(held_out) / len(SUMS) < 0.15


def test_a_problem_stays_on_its_side_when_the_source_grows_or_is_reordered(toys: Toys) -> None:
    before = {row["id"] for row in toys.card().rows("eval")}
    more = [{"question": f"What is {n} * {n}?", "answer": str(n * n)} for n in range(50)]
    toys.source(more + SUMS[::-1])
    assert before < {row["id"] for row in toys.card().rows("eval")}


def test_the_same_question_in_other_spacing_and_case_has_the_same_id() -> None:
    assert canonical_id("What  is 2 + 3?\n") == canonical_id("what is 2 + 3?") != canonical_id("what is 3 + 2?")


def test_repeated_problems_are_given_once(toys: Toys) -> None:
    toys.source(SUMS + SUMS)
    card = toys.card()
    assert len(card.rows("train")) + len(card.rows("eval")) == len(SUMS)


def test_the_seed_fixes_the_order_and_a_limit_gives_its_beginning(toys: Toys) -> None:
    card = toys.card()
    assert card.rows("train", limit=7, seed=1) == card.rows("train", seed=1)[:7]
    assert card.rows("train", limit=7, seed=1) != card.rows("train", limit=7, seed=2)


def test_rows_without_a_usable_gold_are_left_out_and_counted(toys: Toys, caplog: pytest.LogCaptureFixture) -> None:
    toys.source([*SUMS, {"question": "no answer?", "answer": " "}, {"question": "null?", "answer": None}])
    card = toys.card(holdout={})
    assert len(card.rows("train")) == len(SUMS)
    assert f"2 of {len(SUMS) + 2} rows are bad (no usable gold 2)" in caplog.text


def test_a_gold_that_must_be_json_and_is_not_is_unusable(toys: Toys) -> None:
    card = toys.card(constants=BLOCK["constants"] | {"checker": "countdown"})
    with pytest.raises(DataError, match=r"\d+ of the \d+ rows read are bad \(no usable gold"):
        card.rows("train")


def test_values_that_are_not_text_become_json(toys: Toys) -> None:
    toys.source([{"question": "1 + 1?", "answer": 2}, {"question": "primes?", "answer": [2, 3]}])
    assert {row["answer"] for row in toys.card(holdout={}).rows("train")} == {"2", "[2, 3]"}


@pytest.mark.parametrize("ending", ["json", "jsonl.gz", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(toys: Toys, ending: str) -> None:
    file = toys.data / f"sums.{ending}"
    if ending == "json":
        file.write_text(json.dumps(SUMS))
    elif ending == "jsonl.gz":
        file.write_bytes(gzip.compress((toys.data / "sums.jsonl").read_bytes()))
    elif ending == "csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["question", "answer"])
            writer.writeheader()
            writer.writerows(SUMS)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(SUMS), file)
    expected = toys.card().rows("train")
    assert toys.card(mirror={"train": file.name}).rows("train") == expected


def test_a_mirror_may_be_several_files(toys: Toys) -> None:
    toys.source(SUMS[:200], "part-0.jsonl")
    toys.source(SUMS[200:], "part-1.jsonl")
    expected = toys.card().rows("train")
    assert toys.card(mirror={"train": "part-*.jsonl"}).rows("train") == expected


def test_prepare_lays_its_columns_over_the_mapped_ones_and_none_drops_a_row(toys: Toys) -> None:
    prepare = """
def row(raw, config):
    return None if raw["answer"] == "3" else {"answer": raw["answer"] + "." + (config or "plain")}
"""
    card = toys.card(prepare=prepare, holdout={}, configs={"dotted": {}})
    assert {row["answer"] for row in card.rows("train", "dotted")} == {f"{n}.dotted" for n in range(39) if n != 3}


def test_a_config_may_give_rows_of_another_shape_with_the_same_ids(toys: Toys) -> None:
    prepare = "def row(raw, config): return {'response': raw['answer']} if config == 'demos' else {}"
    card = toys.card(prepare=prepare, configs={"demos": {"rows": "demo"}})
    demos = card.rows("train", "demos")
    assert tuple(demos[0]) == cards.COLUMNS["demo"]
    assert {row["id"] for row in demos} == {row["id"] for row in card.rows("train")}


def test_a_generator_is_asked_for_what_is_needed(toys: Toys) -> None:
    prepare = """
import itertools
def rows(split, config, limit, seed):
    return ({"text": f"{split} {config} {seed} {n}"} for n in itertools.count())
"""
    card = toys.card(prepare=prepare, front={"r1": {"rows": "text", "generator": True}})
    assert card.rows("eval", "x", limit=2, seed=5) == [{"text": "eval x 5 0"}, {"text": "eval x 5 1"}]


def test_the_fingerprint_changes_with_the_data_and_with_the_block(toys: Toys) -> None:
    first = toys.card().fingerprint
    assert toys.card().fingerprint == first
    assert toys.card(version=2).fingerprint != first
    toys.source(SUMS[:-1])
    assert toys.card().fingerprint != first


def test_without_a_mirror_the_revision_is_the_commit_on_the_hub(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R1_DATA")
    assert toys.card(hub={"id": "org/sums", "revision": "a" * 40}).revision == "a" * 40


def test_the_hub_is_asked_for_the_pinned_revision(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def hub_rows(*what: Any) -> list[dict[str, Any]]:
        asked.append(what[:4])
        return SUMS

    monkeypatch.delenv("R1_DATA")
    monkeypatch.setattr(cards, "hub_rows", hub_rows)
    rows = toys.card(hub={"id": "org/sums", "revision": "a" * 40, "config": "main"}).rows("eval")
    assert asked == [("org/sums", "a" * 40, "main", "train")]
    assert 0 < len(rows) < len(SUMS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gsm8k", ("gsm8k", None, None)),
        ("card:gsm8k/eval", ("gsm8k", None, "eval")),
        ("reasoning_gym:chain_sum/train", ("reasoning_gym", "chain_sum", "train")),
    ],
)
def test_references_are_read(text: str, expected: tuple[str | None, ...]) -> None:
    assert parse_card_ref(text) == expected


def test_a_reference_that_is_none_is_refused() -> None:
    with pytest.raises(ReferenceError, match="does not name a data card"):
        parse_card_ref("card:two words")


def test_an_unknown_card_is_refused_with_the_nearest_name(toys: Toys) -> None:
    toys.card("sums_of_two")
    with pytest.raises(CardError, match=r"no data card 'sum_of_two'\nhint: did you mean 'sums_of_two'\?"):
        load_card("sum_of_two")


def test_an_unknown_key_is_refused_with_the_nearest_key(toys: Toys) -> None:
    with pytest.raises(CardError, match=r"r1\.colums: unknown key\nhint: did you mean 'columns'\?"):
        toys.card(colums={})
    with pytest.raises(CardError, match=r"r1\.hub\.revison: unknown key\nhint: did you mean 'revision'\?"):
        toys.card(hub={"id": "a/b", "revision": "a" * 40, "revison": "x"})
    with pytest.raises(
        CardError, match=r"r1\.configs\.demos\.hub\.revison: unknown key\nhint: did you mean 'revision'"
    ):
        toys.card(configs={"demos": {"hub": {"id": "a/b", "revision": "a" * 40, "revison": "x"}}})


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"mirror": {}}, "no source"),
        ({"holdout": {"eval": 1.0}}, "leave rows for train"),
        ({"mirror": {"train": "a", "eval": "b"}}, r"holdout` makes \['eval'\], which the source has already"),
        ({"hub": {"id": "a/b", "revision": "main"}}, "revision"),
        ({"rows": "poem"}, "problem"),
    ],
)
def test_an_impossible_block_is_refused(toys: Toys, block: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CardError, match=sentence):
        toys.card(**block)


def test_a_readme_without_the_block_is_refused(toys: Toys) -> None:
    toys.card()
    (toys.cards / "toy" / "README.md").write_text("# no front matter\n")
    with pytest.raises(CardError, match="no `r1:` block"):
        load_card("toy")


def test_an_unknown_split_and_an_unknown_config_name_those_there_are(toys: Toys) -> None:
    card = toys.card(configs={"demos": {}})
    with pytest.raises(CardError, match=r"no split 'evel'\nhint: did you mean 'eval'\? there is: train, eval"):
        card.rows("evel")
    with pytest.raises(CardError, match=r"no config 'demo'\nhint: did you mean 'demos'\?"):
        card.rows("train", "demo")


@pytest.mark.parametrize("prepare", ["", "def row(raw, config): return {'answer': raw['solution']}"])
def test_a_column_the_source_lacks_is_named_with_those_it_has(toys: Toys, prepare: str) -> None:
    toys.source([{"problem": "1 + 1?", "answer": "2"}])
    columns = {"prompt": "problem"} if prepare else BLOCK["columns"]
    with pytest.raises(DataError, match=r"no column '(question|solution)'.*\nhint: .*there is: problem, answer"):
        toys.card(prepare=prepare, columns=columns, holdout={}).rows("train")


def test_a_card_that_forgets_a_column_is_told_so(toys: Toys) -> None:
    with pytest.raises(CardError, match="gives a problem row without checker"):
        toys.card(constants={"domain": "arithmetic", "language": "en"}).rows("train")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("import nope\n", "line 1: ModuleNotFoundError: No module named 'nope'"),
        ("X = 3\ndef row(raw, config)\n    return {}\n", "line 2: SyntaxError: expected ':'"),
        ("\nX = 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("def row(raw, config):\n    return lost\n", "line 2: NameError: name 'lost' is not defined"),
        ("def row(raw, config):\n    import nope\n", "line 2: ModuleNotFoundError: No module named 'nope'"),
        ("def row(raw, config):\n    return {'answer': open('/nowhere')}\n", "line 2: FileNotFoundError: "),
        ("X = '\0'\n", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_a_mistake_in_prepare_is_told_with_its_file_and_line(toys: Toys, r1: Any, prepare: str, said: str) -> None:
    toys.card(prepare=prepare, holdout={})
    for _ in range(2):
        code, output = r1("card-check", "toy")
        assert code == 2 and f"error: card toy: {toys.cards / 'toy' / 'prepare.py'}" in output and said in output
        assert "hint: mend it, then: make card-check NAME=toy" in output


@pytest.mark.parametrize("body", ["    1 / 0\n    yield\n", "    return 1 / 0\n"])
def test_a_mistake_in_a_generator_is_told_with_its_file_and_line(toys: Toys, body: str) -> None:
    card = toys.card(prepare=f"def rows(split, config, limit, seed):\n{body}", generator=True, mirror={}, holdout={})
    with pytest.raises(CardError, match=r"prepare.py, line 2: ZeroDivisionError: division by zero"):
        card.rows("train", limit=2)


def test_a_row_on_which_prepare_fails_is_bad_and_the_line_is_told_where_they_stop_a_run(toys: Toys) -> None:
    card = toys.card(prepare="def row(raw, config):\n    assert 1 / (int(raw['answer']) - 5)\n", holdout={})
    with pytest.raises(DataError, match="none of its 400 rows is left: left out by the card 394, not of the form"):
        card.rows("train")
    card = toys.card(prepare="def row(raw, config):\n    return {'answer': 1 / 0}\n", name="all", holdout={})
    with pytest.raises(DataError, match=r"400 of the 400 rows read are bad .*ZeroDivisionError") as caught:
        card.rows("train")
    assert caught.value.hint == f"see {toys.cards / 'all' / 'prepare.py'}, line 2"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, CardError])
def test_what_is_no_mistake_of_prepare_passes_through_it(toys: Toys, error: type[BaseException]) -> None:
    prepare = f"from pipeline.errors import CardError\ndef row(raw, config):\n    raise {error.__name__}('as it is')\n"
    with pytest.raises(error, match=r"^as it is$"):
        toys.card(prepare=prepare, holdout={}).rows("train")


def test_an_empty_source_is_an_error(toys: Toys) -> None:
    toys.source([])
    with pytest.raises(DataError, match="the data set is empty"):
        toys.card().rows("train")


def test_a_missing_mirror_file_names_the_folder_and_the_way_to_the_hub(toys: Toys) -> None:
    card = toys.card(hub={"id": "org/sums", "revision": "a" * 40}, mirror={"train": "gone.jsonl"})
    with pytest.raises(DataError, match=r"R1_DATA=.* has no gone.jsonl\nhint: .*unset R1_DATA to load org/sums"):
        card.rows("train")


def test_a_mirror_alone_needs_r1_data(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R1_DATA")
    with pytest.raises(DataError, match=r"R1_DATA is not set\nhint: put sums.jsonl into a folder"):
        toys.card().rows("train")


def test_a_torn_line_is_counted_and_named_and_stops_nothing(toys: Toys, caplog: pytest.LogCaptureFixture) -> None:
    with (toys.data / "sums.jsonl").open("a") as stream:
        stream.write('{"question": "1 +')
    assert len(toys.card(holdout={}).rows("train")) == len(SUMS)
    assert f"sums.jsonl, line {len(SUMS) + 1}: not a row of JSON" in caplog.text


@pytest.mark.parametrize(
    ("licence", "sentence"),
    [
        ("mit", None),
        ("unknown", "states no licence"),
        (None, "states no licence"),
        ("cc-by-nc-4.0", "no commercial use"),
    ],
)
def test_licences_that_bind_are_said_aloud(toys: Toys, licence: str | None, sentence: str | None) -> None:
    warnings = toys.card(front={"license": licence}).warnings
    assert (sentence in warnings[0]) if sentence else not warnings


def test_the_holdout_hash_spreads_evenly() -> None:
    share = sum(bucket(str(n)) < 0.1 for n in range(10_000)) / 10_000
    assert 0.09 < share < 0.11


@pytest.mark.parametrize("name", [folder.parent.name for folder in DATA_CARDS.glob("*/README.md")])
def test_every_card_of_the_project_loads_and_is_a_dataset_card(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R1_DATA", raising=False)
    card = load_card(name)
    assert {"license", "language", "pretty_name", "size_categories"} <= card.front.keys()
    assert len(card.fingerprint) == 64
    assert card.splits


def test_a_broken_card_does_not_hide_the_others_from_the_list(toys: Toys) -> None:
    toys.card("whole")
    toys.card("torn")
    (toys.cards / "torn" / "README.md").write_text("---\nr1: {rows: poem}\n---\n")
    names = {summary["card"]: "".join(summary["notes"]) for summary in map(card_table._summary, cards.list_cards())}
    assert "torn" in names["torn"]
    assert not names["whole"]


def test_listing_cards_imports_nothing_heavy() -> None:
    code = """
import sys
from pipeline.card_table import cards_table
assert cards_table()
print(sorted({"torch", "transformers", "datasets", "pyarrow", "reasoning_gym"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_table_of_cards_fits_100_columns_and_breaks_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    table = cards_table()
    Console(width=100).print(table)
    lines = capsys.readouterr().out.splitlines()
    words = {word.rstrip(",") for line in lines for word in line.split()}
    cards = [load_card(name) for name in list_cards()]
    assert {card.name for card in cards} | {config for card in cards for config in card.configs} <= words
    shown = [line for line in lines if line.split() and line.split()[0] in list_cards()]
    assert len(shown) == len(cards) and all(len(line.rstrip()) <= 100 for line in shown)


def test_the_table_says_what_a_card_needs_here(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.source([])
    toys.card()
    assert _source(load_card("toy")).startswith("files ")
    monkeypatch.setenv("R1_DATA", str(toys.cards))
    assert _source(load_card("toy")) == "files missing"
    monkeypatch.delenv("R1_DATA")
    assert _source(load_card("toy")) == "set R1_DATA"
