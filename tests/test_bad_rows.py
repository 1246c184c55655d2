"""Broken rows stop no run: they are counted by reason and shown; too many of them stop it with a sentence."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pipeline import card as cards
from pipeline.card import load_card
from pipeline.errors import DataError
from pipeline.sources import read_rows
from tests.test_card import SUMS, Toys, toys

__all__ = ["toys"]

BROKEN = [
    {"question": "no answer?"},
    {"question": None, "answer": "1"},
    {"question": "  ", "answer": "2"},
    {"question": "half a character \ud83d?", "answer": "3"},
    {"answer": "4"},
    {},
]


def test_every_kind_of_broken_row_is_counted_and_the_first_three_are_shown(
    toys: Toys, caplog: pytest.LogCaptureFixture
) -> None:
    toys.source([*SUMS, *BROKEN])
    with (toys.data / "sums.jsonl").open("ab") as stream:
        stream.write(b'{"question": "cut o\n[1, 2]\n\xff\xfe{}\n')
    assert len(toys.card(holdout={}).rows("train")) == len(SUMS)
    said = caplog.text
    assert "9 of 409 rows are bad" in said
    for reason in ("no column 'answer' 2", "prompt is empty 2", "not a row 3", "no column 'question' 1"):
        assert reason in said
    assert "(a lone surrogate) 1" in said
    assert said.count("; row ") == 2 and "row 401: no column 'answer'" in said


def test_a_row_that_surprises_prepare_is_bad_and_what_it_leaves_out_is_not(toys: Toys) -> None:
    prepare = """
def row(raw, config):
    if raw["answer"] == "5":
        return "five"
    return {"answer": str(int(raw["answer"]) + len(raw["tags"][0]))}
"""
    rows = [*({**row, "tags": ["x"]} for row in SUMS), {**SUMS[0], "tags": None}, {**SUMS[0], "tags": []}]
    toys.source(rows)
    card = toys.card(prepare=prepare, holdout={})
    tally = card.tally("train")
    assert len(list(card.stream("train", tally=tally))) == tally.num_kept == len(SUMS) - 6
    assert tally.left_out == {"five": 6} and tally.num_found == len(rows)
    assert {reason.rpartition("(")[2] for reason in tally.bad} == {"TypeError)", "IndexError)"}


@pytest.mark.parametrize(("num_bad", "limit", "stops"), [(100, 0.2, False), (101, 0.2, True), (101, 0.3, False)])
def test_a_share_of_bad_rows_above_the_limit_stops_with_a_sentence(
    toys: Toys, num_bad: int, limit: float, stops: bool
) -> None:
    toys.source([*SUMS, *({"question": f"{n}?"} for n in range(num_bad))])
    card = toys.card(holdout={}, max_bad_share=limit)
    if not stops:
        assert len(card.rows("train")) == len(SUMS)
        return
    sentence = (
        r"101 of the 501 rows read are bad \(no column 'answer' 101\), and the card allows 20% \(`max_bad_share`\)"
    )
    with pytest.raises(DataError, match=sentence) as caught:
        card.rows("train")
    assert "row 401" in caught.value.message and "there is: question" in caught.value.hint


def test_a_large_source_of_bad_rows_is_not_read_to_its_end(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    given = 0

    def hub_rows(*what: Any) -> Any:
        nonlocal given
        for given in range(10**6):
            yield {"other": given}

    monkeypatch.delenv("R1_DATA")
    monkeypatch.setattr(cards, "hub_rows", hub_rows)
    card = toys.card(mirror={}, hub={"id": "org/sums", "revision": "a" * 40, "stream": True})
    with pytest.raises(DataError, match="rows read are bad"):
        card.rows("train", limit=10)
    assert given < 2000


def test_a_limit_on_a_large_source_holds_only_that_many_rows(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R1_DATA")
    source = ({"question": f"{n}?", "answer": f"{n} " * 1000} for n in range(2000))  # some 10 MB in all
    monkeypatch.setattr(cards, "hub_rows", lambda *what: source)
    hub = {"id": "org/sums", "revision": "a" * 40, "stream": True}
    card = toys.card(rows="demo", columns={"prompt": "question", "response": "answer"}, mirror={}, hub=hub)
    tracemalloc.start()
    try:
        assert len(card.rows("train", limit=20)) == 20
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


def test_a_source_of_which_nothing_is_left_says_for_what_reason(toys: Toys) -> None:
    card = toys.card(prepare="def row(raw, config): return 'a proof'", holdout={})
    with pytest.raises(DataError, match="none of its 400 rows is left: a proof 400"):
        card.rows("train")


def test_a_config_may_lie_in_another_data_set_under_another_split(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def hub_rows(*what: Any) -> Any:
        asked.append((*what[:4], what[5]))
        return iter(SUMS)

    monkeypatch.delenv("R1_DATA")
    monkeypatch.setattr(cards, "hub_rows", hub_rows)
    other = {"id": "org/later", "revision": "b" * 40, "splits": {"eval": "validation"}, "stream": True}
    here = {"id": "org/sums", "revision": "a" * 40, "splits": {"eval": "test"}}
    card = toys.card(mirror={}, holdout={}, hub=here, configs={"later": {"hub": other}})
    assert card.splits == ("eval",) and card.revision == f"{'a' * 40} {'b' * 40}"
    assert len(card.rows("eval")) == len(card.rows("eval", "later", limit=9)) + len(SUMS) - 9
    assert asked == [("org/sums", "a" * 40, None, "test", False), ("org/later", "b" * 40, None, "validation", True)]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("cut.jsonl.gz", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab"),
        ("no.jsonl.gz", b"plain"),
        ("cut.parquet", b"PAR1 and no more"),
        ("cut.json", b'[{"a": 1}, {"a"'),
        ("numbers.json", b"[1, 2]"),
        ("latin.csv", b"a,b\n\xe9,1\n"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=file):
        list(read_rows(tmp_path / file))


def test_a_folder_or_a_pipe_where_a_card_s_file_should_be_is_named(toys: Toys, r1: Any) -> None:
    toys.card()
    file = toys.data / "sums.jsonl"
    plan = ("plan", "r1-zero", "--args", "stages.r1_zero.problems=[card:toy]")
    file.unlink()
    file.mkdir()
    code, said = r1(*plan)
    assert code == 2 and f"error: {file} is a folder" in said and "hint: put a file of rows in its place" in said
    file.rmdir()
    os.mkfifo(file)
    code, said = r1(*plan)
    assert code == 2 and f"error: {file} is no regular file" in said and "hint: copy its rows" in said


def test_a_card_s_file_that_may_not_be_read_is_named(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *words: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(self))

    card = toys.card()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"sums.jsonl: cannot be opened \(Permission denied\)") as caught:
        len(card.revision)
    assert "rights" in caught.value.hint


@pytest.mark.parametrize("file", ["latin.csv", "latin.jsonl"])
def test_a_file_that_is_not_in_utf8_says_how_to_mend_it(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(b'{"a": "\xe9"}\n')
    with pytest.raises(DataError, match="not in UTF-8") as caught:
        list(read_rows(tmp_path / file))
    assert "iconv" in caught.value.hint


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(("file", "opener"), [("rows.csv", open), ("rows.jsonl", open), ("rows.jsonl.gz", gzip.open)])
def test_a_file_in_utf16_is_known_by_its_first_two_bytes(tmp_path: Path, encoding: str, file: str, opener: Any) -> None:
    with opener(tmp_path / file, "wb") as stream:
        stream.write('\ufeff{"a": "é"}\n{"a": "b"}\n'.encode(encoding))
    with pytest.raises(DataError, match=f"{file}: in UTF-16, not in UTF-8") as caught:
        list(read_rows(tmp_path / file, lambda torn: None))
    assert "iconv -f UTF-16 -t UTF-8" in caught.value.hint and "LATIN1" not in caught.value.hint


def test_a_json_list_in_utf16_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"a": "é"}]', encoding="utf-16")
    assert list(read_rows(tmp_path / "rows.json")) == [{"a": "é"}]


@pytest.mark.parametrize("name", ["rows", "rows.jsonl"])
def test_what_is_no_regular_file_is_refused_before_it_is_read(tmp_path: Path, name: str, r1: Any) -> None:
    place = tmp_path / name
    place.mkdir()
    code, said = r1("card", "my_data", "--file", str(place))
    assert code == 2 and f"error: {place} is a folder" in said and "hint: " in said
    place.rmdir()
    os.mkfifo(place)
    code, said = r1("card", "my_data", "--file", str(place))
    assert code == 2 and f"error: {place} is no regular file" in said and "hint: " in said


def test_a_csv_of_long_cells_is_read_and_one_with_a_cell_too_many_is_counted(tmp_path: Path) -> None:
    file, torn = tmp_path / "rows.csv", list[str]()
    file.write_text(f"question,answer\n{'x' * 200_000},1\na,2,3\nb\n")
    rows = list(read_rows(file, torn.append))
    assert [len(row["question"]) for row in rows] == [200_000, 1] and rows[1]["answer"] is None
    assert torn == ["rows.csv, line 3: more cells than columns"]
    file.write_text("question,question\na,b\n")
    with pytest.raises(DataError, match="two columns are called 'question'"):
        list(read_rows(file))


def test_a_folder_of_files_can_stand_in_for_the_source(toys: Toys, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in (0, 1):
        part = SUMS[200 * number : 200 * number + 200]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "README.md").write_text("no rows")
    assert len(toys.card().reading(folder).rows("train")) == len(SUMS)


@pytest.mark.parametrize(
    ("name", "config", "file", "num_rows"),
    [
        ("openr1_math_220k", None, "openr1_math_220k", 5),
        ("openr1_math_220k", "problems", "openr1_math_220k", 5),
        ("openthoughts_114k", None, "openthoughts_114k_default", 5),
        ("openthoughts_114k", "metadata", "openthoughts_114k_metadata", 5),
        ("bespoke_stratos_17k", None, "bespoke_stratos_17k", 5),
        ("r1_distill_sft", None, "r1_distill_sft_v0", 5),
        ("r1_distill_sft", "v1", "r1_distill_sft_v1", 5),
        ("dolphin_r1", None, "dolphin_r1_reasoning_deepseek", 5),
        ("dolphin_r1", "nonreasoning", "dolphin_r1_nonreasoning", 5),
        ("limo", None, "limo", 5),
        ("numinamath_1_5", None, "numinamath_1_5", 20),
        ("deepscaler", None, "deepscaler_hub_columns_aime", 975),
    ],
)
def test_real_text_in_the_columns_of_the_hub_goes_through_its_card(
    name: str, config: str | None, file: str, num_rows: int, real_data: Path
) -> None:
    card = load_card(name).reading(real_data / "schema_fixtures" / f"{file}.jsonl")
    tally = card.tally("train", config)
    assert len(list(card.stream("train", config, tally=tally))) == num_rows
    assert not tally.bad


def test_the_parts_of_the_competition_set_on_disk_are_the_card_and_empty_answers_are_counted(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1_DATA", str(real_data))
    card = load_card("deepscaler")
    tally = card.tally("train")
    num_train = len(list(card.stream("train", tally=tally)))
    assert tally.bad == {"no usable gold": 4} and tally.num_found == 975 + 7474
    assert num_train + tally.left_out.total() + 4 == tally.num_found
