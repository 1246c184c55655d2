"""IFEval's demands: each kind by a text that meets it and one that does not, real prompts, and hostile texts."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.card import load_card
from stages.rewards.checkers import Verdict, check
from stages.rewards.ifeval import RULES, follows, met
from tests.hostile_completions import ROWS

DEMANDS: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "GO and STOP",
        "GO",
    ),
    ("change_case:capital_word_frequency", {"capital_relation": "less than", "capital_frequency": 2}, "GO", "GO STOP"),
    ("change_case:english_capital", {}, "ALL OF IT, 7 TIMES.", "ALL Of IT"),
    ("change_case:english_lowercase", {}, "all of it, 7 times.", "all Of it"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say hi. Hi!", "Hi! Say hi."),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    ("combination:two_responses", {}, "******One.******Two.", "One.******Two.******Three."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [street]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. One more.", "Bye. PSst."),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S. Two more.", "P.S. One more."),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}"),
    ("detectable_format:json_format", {}, '{"a": 1}', 'Here: {"a": 1}'),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        "Day 1\nx\nDay 2",
        "Day 1 Today 2",
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two\n**no**", "* one\n* two\n* three"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b c**", "*a* and * *"),
    ("detectable_format:title", {}, "<<Songs>>\nla", "<< >>\nla"),
    ("keywords:existence", {"keywords": ["sea", "sky"]}, "Skyline at Sea", "sea"),
    ("keywords:forbidden_words", {"forbidden_words": ["free"]}, "Freedom", "It is FREE."),
    ("keywords:frequency", {"keyword": "la", "relation": "at least", "frequency": 2}, "La la", "la"),
    ("keywords:letter_frequency", {"letter": "n", "let_relation": "less than", "let_frequency": 2}, "No", "None"),
    ("language:response_language", {"language": "hi"}, "यह एक वाक्य है", "this is a sentence"),
    (
        "language:response_language",
        {"language": "de"},
        "Das ist nicht mein Hund und der Tag ist lang",
        "this is not my dog",
    ),
    (
        "language:response_language",
        {"language": "sw"},
        "Hii ni kazi ya watu wa nchi na katika dunia",
        "das ist es nicht",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "sun"},
        "A.\n\nSun up.",
        "Sun.\n\nA.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 2},
        "Dr. Who came. He left",
        "Mr. A. Smith came.",
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 2},
        "Pi is 3.14 or so.",
        "Yes! No?",
    ),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}, "two words", "now three words"),
    ("punctuation:no_comma", {}, "None.", "One, two"),
    ("startend:end_checker", {"end_phrase": "That is all."}, 'So: "That is all."', "That is all. Bye"),
    ("startend:quotation", {}, '"All of it."', '"'),
]


def gold(*demands: tuple[str, dict[str, Any]]) -> str:
    return json.dumps({"instruction_id_list": [name for name, _ in demands], "kwargs": [given for _, given in demands]})


def test_the_table_below_has_every_kind() -> None:
    assert {name for name, *_ in DEMANDS} == set(RULES)
    assert len(RULES) == 25


@pytest.mark.parametrize(("name", "settings", "meets", "misses"), DEMANDS)
def test_a_demand_is_met_by_the_one_text_and_missed_by_the_other(
    name: str, settings: dict[str, Any], meets: str, misses: str
) -> None:
    assert follows(meets, gold((name, settings))) is True
    assert follows(misses, gold((name, settings))) is False


def test_every_demand_must_be_met_and_nothing_meets_none() -> None:
    both = gold(("punctuation:no_comma", {}), ("change_case:english_lowercase", {}))
    assert follows("small and plain", both) and not follows("small, plain", both) and not follows("Small", both)
    assert follows("  ", gold(("punctuation:no_comma", {}))) is False


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        '{"instruction_id_list": [], "kwargs": []}',
        gold(("punctuation:no_semicolon", {})),
        gold(("keywords:existence", {})),
        gold(("keywords:existence", {"keywords": [3]})),
        gold(("length_constraints:number_words", {"relation": "about", "num_words": 3})),
        gold(("length_constraints:number_words", {"relation": "at least", "num_words": "3"})),
    ],
)
def test_a_gold_that_no_rule_can_judge_is_unusable(text: str) -> None:
    assert follows("anything", text) is None
    assert check("anything", {"prompt": "?", "answer": text, "checker": "ifeval"}) == Verdict.gold_unusable


def test_no_hostile_text_raises_or_hangs() -> None:
    golds = [gold((name, settings)) for name, settings, *_ in DEMANDS]
    bombs = ["[" * 20_000, "*" * 20_000, "." * 20_000, "* " * 10_000, " \n" * 10_000 + "x", "```" + " " * 20_000 + "x"]
    started = time.process_time()
    for text in [*bombs, *(row[1] for row in ROWS)]:
        assert all(follows(text, one) in (True, False) for one in golds)
    assert time.process_time() - started < 20  # a quadratic rule would take minutes


def test_every_real_prompt_has_a_gold_that_the_rules_can_judge(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1_DATA", str(real_data))
    rows = load_card("ifeval").rows("eval")
    assert len(rows) >= 401
    assert all(follows("An answer", row["answer"]) is not None for row in rows)
    assert not any(check("", row) == Verdict.right for row in rows)


TWO = gold(("change_case:english_lowercase", {}), ("punctuation:no_comma", {}))


@pytest.mark.parametrize(
    ("text", "strict", "loose"),
    [
        ("small and plain", [True, True], [True, True]),
        ("Here it is:\nsmall, plain", [False, False], [True, True]),  # each demand by another part, as in the original
        ("Here it is:\nsmall, plain\nBye, friend", [False, False], [True, False]),
        ("small and plain\nI hope that helps, friend!", [False, False], [True, True]),
        ("Sure!\nsmall and plain\nAnything else?", [False, True], [True, True]),
        ("SMALL\nAND\nPLAIN", [False, True], [False, True]),
        ("Sure, one line", [False, False], [False, False]),  # nothing is left of a single line, and nothing meets none
        ("*\n*", [False, False], [False, False]),
        ("", [False, False], [False, False]),
    ],
)
def test_loose_accuracy_forgives_a_first_line_a_last_line_and_asterisks(
    text: str, strict: list[bool], loose: list[bool]
) -> None:
    assert met(text, TWO) == (strict, loose)
    assert follows(text, TWO) is all(strict)


def test_loose_accuracy_forgives_asterisks() -> None:
    quoted = gold(("startend:quotation", {}))
    assert met('**"All of it."**', quoted) == ([False], [True])


def test_loose_is_never_less_than_strict_and_hostile_texts_take_no_time() -> None:
    golds = [gold((name, settings)) for name, settings, *_ in DEMANDS]
    started = time.process_time()
    for text in ("\n" * 20_000, "a\n" * 10_000, "*" * 20_000, "\r\n*\r\n", *(row[1] for row in ROWS[:40])):
        for one in golds:
            found = met(text, one)
            assert found and all(loose or not strict for strict, loose in zip(*found, strict=True))
    assert time.process_time() - started < 20
