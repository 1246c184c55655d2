"""pipeline/console.py and cli.py: text is printed as it is, and words that make no command end in a sentence."""

from typing import Any

import pytest

from pipeline.bad_rows import BadRow, Tally
from pipeline.card_check import LOOK, Line, check_table
from pipeline.console import console, show_counts, show_done, show_note, show_plan
from pipeline.plan import Line as PlanLine

BRACKETS = "x [red] → [/green] [a, b]"


def test_square_brackets_are_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(f"run {BRACKETS}", [PlanLine("r1_zero", "grpo", "stale", detail=BRACKETS)], {})
    show_note(BRACKETS)
    show_done({"stage": "r1_zero", "seconds": 3, "metrics": {}})
    console.print(check_table("card toy", [Line(BRACKETS, BRACKETS, LOOK)]))
    assert capsys.readouterr().out.count(BRACKETS) == 5


@pytest.mark.parametrize(
    "words", [[], ["nosuch"], ["run"], ["run", "r1-zero", "--nosuch"], ["verify"], ["pack", "a", "b"]]
)
def test_words_that_make_no_command_are_told_in_a_sentence_and_a_hint(r1: Any, words: list[str]) -> None:
    code, output = r1(*words)
    assert code == 2 and "_stage" not in output
    assert [line.partition(" ")[0] for line in output.splitlines()] == ["error:", "hint:"]


def test_counts_whose_names_hold_commas_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    show_counts("questions", {"kept_by_domain": {"math, en": 5, "math, zh": 1200}, "rows": {"found": 9, "kept": 7}})
    said = capsys.readouterr().out
    assert "kept by domain: math, en 5; math, zh 1,200\n" in said and "rows: found 9, kept 7\n" in said


def test_a_bad_row_that_is_shown_does_not_move_the_cursor() -> None:
    tally = Tally("toy", 1.0, "toy")
    tally.count_bad(BadRow("torn"), "\x1b[2J\x1b[1;1H all is well \r")
    assert tally.shown[0].isprintable()
