"""Starting a data card, and trying one on rows that are not what it says."""

import errno
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from pipeline import new_card
from pipeline.card import load_card
from pipeline.card_check import GOOD, LOOK, WRONG, Line, check_card, evaluation_splits, require_good
from pipeline.errors import CardError, DataError, ResourceError
from tests.test_card import Toys, toys

__all__ = ["toys"]

INFO = [{"config_name": "default", "features": [{"name": name, "dtype": "string"} for name in ("question", "answer")]}]


def checked(toys: Toys, rows: list[dict[str, Any]], **block: Any) -> dict[str, Line]:
    toys.source(rows)
    toys.card(front={"dataset_info": INFO}, holdout={}, **block)
    return {line.question: line for line in check_card("toy")}


def sums(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(count)]


def test_a_card_that_says_what_is_there_is_good(toys: Toys) -> None:
    lines = checked(toys, sums(50), constants={"checker": "math", "domain": "math", "language": "en"})
    assert lines["columns"] == Line("columns", "question, answer", GOOD)
    assert lines["golds"].answer == "100.0% of 50 can be judged"
    assert lines["rows"].verdict == lines["duplicates"].verdict == GOOD
    require_good("toy", list(lines.values()))


def test_a_column_that_is_not_there_or_of_another_type_is_wrong(toys: Toys) -> None:
    lines = checked(toys, [{"question": f"{n}?", "answer": n, "source": "x"} for n in range(9)])
    assert lines["columns"] == Line("columns", "answer is int, not string; has more: source", WRONG)
    with pytest.raises(DataError, match="card toy: wrong: columns"):
        require_good("toy", list(lines.values()))
    lines = checked(toys, [{"problem": f"{n}?", "answer": "1"} for n in range(9)])
    assert lines["columns"].answer == "lacks question; has more: problem"
    assert "no column 'question' 9" in lines["stops a run"].answer
    assert "there is: problem, answer" in lines["stops a run"].answer


def test_bad_rows_duplicates_and_golds_that_nothing_can_judge_are_shown(toys: Toys) -> None:
    odd = [{"question": "Which?", "answer": "no " * 200}, {"question": "None?", "answer": None}]
    math = {"checker": "math", "domain": "math", "language": "en"}
    lines = checked(toys, [*sums(20), *odd, {"question": "what is  3 + 1?", "answer": "4"}], constants=math)
    assert lines["rows"].verdict == LOOK and "no usable gold 1" in lines["rows"].answer
    assert "row 22: no usable gold" in lines["bad row"].answer
    assert "not, for instance: no no" in lines["golds"].answer
    assert "there before 1" in lines["rows"].answer


def test_a_column_that_no_row_needs_may_be_missing(toys: Toys) -> None:
    more = [{**INFO[0], "features": [*INFO[0]["features"], {"name": "year", "dtype": "string"}]}]
    toys.source(sums(20))
    toys.card(front={"dataset_info": more}, holdout={})
    assert Line("columns", "lacks year", LOOK) in check_card("toy")


def test_problems_of_an_evaluation_card_are_found_among_training_rows(toys: Toys) -> None:
    held = {"question": "A farmer keeps 12 geese and 7 goats in one large barn. How many legs is that?", "answer": "52"}
    toys.source([held], "bench.jsonl")
    toys.card("bench", holdout={}, mirror={"eval": "bench.jsonl"})
    assert ("bench", "eval") in {(card.name, split) for card, split in evaluation_splits()}
    lines = checked(toys, [*sums(20), held])
    assert lines["in bench/eval"] == Line("in bench/eval", "identical 1", LOOK)


def test_the_command_prints_the_table_and_leaves_with_2_where_something_is_wrong(toys: Toys, r1: Any) -> None:
    checked(toys, sums(20))
    code, said = r1("card-check", "toy")
    assert code == 0 and "20 of 20 rows are used" in said
    code, said = r1("card-check", "toy", "--file", str(toys.source([{"a": 1}], "other.jsonl")))
    assert code == 2 and "card toy: wrong: columns" in said
    code, said = r1("card-check", "toy", "--file", "nowhere.jsonl")
    assert code == 2 and "there are no rows at nowhere.jsonl" in said and "Traceback" not in said
    code, said = r1("card-check", "")
    assert code == 2 and "there is no data card ''" in said and "there is: " in said


@pytest.mark.parametrize(("name", "sentence"), [("Two words", "cannot name a card"), ("gsm8k", "already")])
def test_a_card_cannot_be_started_under_an_impossible_or_a_taken_name(name: str, sentence: str) -> None:
    with pytest.raises(CardError, match=sentence):
        new_card.start_card(name)


def rows_file(folder: Path, *rows: dict[str, Any], name: str = "rows.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


@pytest.mark.parametrize("failing", ["README.md", "examples.jsonl", "my_data"])
def test_a_card_that_cannot_be_written_is_told_and_leaves_nothing_half_made(
    failing: str, tmp_path: Path, r1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(write: Any) -> Any:
        def refuse(self: Path, *words: Any, **more: Any) -> Any:
            if self.name == failing:
                raise OSError(errno.EACCES, "Permission denied", str(self))
            return write(self, *words, **more)

        return refuse

    file = rows_file(tmp_path, *sums(4))
    monkeypatch.setattr(new_card, "DATA_CARDS", tmp_path / "cards")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refusing(Path.write_text))
        patch.setattr(Path, "mkdir", refusing(Path.mkdir))
        code, said = r1("card", "my_data", "--file", str(file))
    assert code == 2 and "my_data cannot be written (Permission denied)" in said
    assert "hint: " in said and "same command again" in said
    assert not (tmp_path / "cards" / "my_data").exists()
    assert r1("card", "my_data", "--file", str(file))[0] == 0


def test_a_folder_that_is_no_card_yet_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_card, "DATA_CARDS", tmp_path)
    (tmp_path / "my_data").mkdir()
    rows_file(tmp_path / "my_data", *sums(4))
    with pytest.raises(CardError, match="my_data is there already, and is no card"):
        new_card.start_card("my_data")
    assert [file.name for file in (tmp_path / "my_data").iterdir()] == ["rows.jsonl"]


def test_a_card_where_no_folder_can_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cards").write_text("a file")
    monkeypatch.setattr(new_card, "DATA_CARDS", tmp_path / "cards")
    with pytest.raises(ResourceError, match=r"cannot be written \(Not a directory\)"):
        new_card.start_card("my_data")


@pytest.mark.parametrize("name", ["my rows.jsonl", "it's (1) & more.jsonl"])
def test_the_next_command_can_be_pasted_whatever_the_file_is_called(
    name: str, tmp_path: Path, r1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = rows_file(tmp_path, *sums(4), name=name)
    monkeypatch.setattr(new_card, "DATA_CARDS", tmp_path / "cards")
    _, said = r1("card", "my_data", "--file", str(file))
    assert shlex.split(said.partition("then: ")[2]) == ["make", "card-check", "NAME=my_data", f"FILE={file}"]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"question": "What is {} + 1?", "gold": "{}", "response": "It is {}."}, "problem"),
        ({"prompt": "What is {} + 1?", "response": "It is {}."}, "demo"),
        ({"instruction": "Say {}!", "completion": "{}."}, "demo"),
        ({"prompt": "Say {}!", "chosen": "{}.", "rejected": "No {}."}, "preference"),
        ({"text": "Once there were {} geese."}, "text"),
    ],
)
def test_a_new_card_has_the_kind_of_rows_that_its_columns_show_and_is_good_at_once(
    row: dict[str, str], shape: str, tmp_path: Path, r1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{column: text.format(n) for column, text in row.items()} for n in range(40)]
    monkeypatch.setattr(new_card, "DATA_CARDS", tmp_path / "cards")
    monkeypatch.setenv("R1_CARDS", str(tmp_path / "cards"))
    file = str(rows_file(tmp_path, *rows))
    assert r1("card", "my_data", "--file", file)[0] == 0
    assert load_card("my_data").shape() == shape
    code, said = r1("card-check", "my_data", "--file", file)
    assert code == 0 and "40 of 40 rows are used" in said


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hello!", "response": [{"role": "assistant", "content": "Hello!"}]},
        {"prompt": "Hello!", "chosen": ["a"], "rejected": ["b"]},
        {"name": "x"},
    ],
)
def test_columns_that_show_no_kind_of_rows_leave_it_to_the_reader(
    row: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_card, "DATA_CARDS", tmp_path)
    readme = new_card.start_card("my_data", rows_file(tmp_path, row)) / "README.md"
    assert "  rows: problem  # problem | demo | preference | text\n" in readme.read_text()
