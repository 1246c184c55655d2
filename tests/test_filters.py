"""Filters: each drops what it names, lets good text pass, and can be switched off."""

import pytest

from stages.chat import parse
from stages.filters import FAILS, Filters

GOOD = "<think> first three and four make seven, then five more make twelve </think><answer> 12 </answer>"
OFF = Filters(well_formed=False, mixed_languages=None, long_paragraphs=None, code_blocks=False, repetition=None)

BAD = {
    "not_well_formed": "three and four make seven",
    "mixed_languages": GOOD.replace("then five more", "再加五"),
    "long_paragraphs": GOOD.replace("first", "a rather long paragraph " + " ".join(f"w{i}" for i in range(600))),
    "code_blocks": GOOD.replace("then", "\n```python\nprint(7 + 5)\n```\nthen"),
    "repetition": GOOD.replace("then", "wait, let me look at that sum once more with care. " * 5),
}


def reason(text: str, filters: Filters | None = None, language: str = "en") -> str | None:
    return (filters or Filters()).reason_to_drop(parse(text), language)


def test_every_filter_has_a_bad_example() -> None:
    assert set(BAD) == set(FAILS)


@pytest.mark.parametrize("name", BAD)
def test_a_filter_drops_what_it_names_and_nothing_once_it_is_off(name: str) -> None:
    assert reason(BAD[name]) == name
    assert reason(BAD[name], OFF) is None


def test_good_text_passes_in_both_languages() -> None:
    assert reason(GOOD) is None
    chinese = "<think> 三加四等于七，再加五等于十二，记作 x = 12 </think><answer> 12 </answer>"
    assert reason(chinese, language="zh") is None
    assert reason(chinese, language="en") == "mixed_languages"


def test_code_and_long_paragraphs_count_in_the_reasoning_only() -> None:
    answer = "```python\nprint(12)\n```" + " and so on" * 5 + " x" * 1500
    assert reason(f"<think> easy </think><answer> {answer} </answer>", Filters(repetition=None)) is None


def test_blank_lines_end_a_paragraph() -> None:
    text = " ".join(f"w{i}" for i in range(300))
    assert reason(f"<think> {text}\n \n{text} </think><answer> 1 </answer>", Filters(repetition=None)) is None
    assert reason(f"<think> {text}\n{text} </think><answer> 1 </answer>", Filters(repetition=None)) == "long_paragraphs"
