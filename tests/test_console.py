"""pipeline/console.py: text is printed as it is, whatever it holds."""

import pytest

from pipeline.bad_rows import BadRow, Tally
from pipeline.card_check import LOOK, Line, check_table
from pipeline.console import console, show_done, show_note, show_plan
from pipeline.plan import Line as PlanLine

BRACKETS = "x [red] → [/green] [a, b]"


def test_square_brackets_are_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show_plan(f"run {BRACKETS}", [PlanLine("r1_zero", "grpo", "stale", detail=BRACKETS)], {})
    show_note(BRACKETS)
    show_done({"stage": "r1_zero", "seconds": 3, "metrics": {}})
    console.print(check_table("card toy", [Line(BRACKETS, BRACKETS, LOOK)]))
    assert capsys.readouterr().out.count(BRACKETS) == 5


def test_a_bad_row_that_is_shown_does_not_move_the_cursor() -> None:
    tally = Tally("toy", 1.0, "toy")
    tally.count_bad(BadRow("torn"), "\x1b[2J\x1b[1;1H all is well \r")
    assert tally.shown[0].isprintable()
