"""stages/rewards/checkers.py and what stands behind it: verdicts, and no text that raises."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from stages.chat import parse
from stages.rewards import sandbox
from stages.rewards.checkers import CHECKERS, Verdict, answer_text, canonical, check, check_many
from stages.rewards.evaluated import MAX_DIGITS
from stages.rewards.math_answer import clean, read_number
from tests.hostile_completions import NO_COMMA

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("R1_DATA", ROOT.parent / "shared" / "data"))
NUMBERISH = st.text(st.sampled_from("0123456789.,+-/ $%\\{}^e×万m"), max_size=24)


def make_problem(checker: str, answer: str, prompt: str = "?") -> dict[str, str]:
    return {
        "id": "1",
        "prompt": prompt,
        "answer": answer,
        "checker": checker,
        "domain": "math",
        "language": "en",
    }


# --- verdicts -----------------------------------------------------------------------------------------------


def test_percent_may_be_added_only_when_the_question_speaks_of_percent() -> None:
    assert check("42%", make_problem("math", "42", "What percent of them?")) is Verdict.right
    assert check("42%", make_problem("math", "42", "How many of them?")) is Verdict.wrong
    assert check("42", make_problem("math", r"42\%")) is Verdict.right


@pytest.mark.parametrize(
    "gold", [r"14\pi", r"\sqrt{2}", r"\left( 3, \frac{\pi}{2} \right)", "p - q", r"[2,5)", r"x^2+1"]
)
def test_a_gold_answer_verifies_against_itself_and_not_against_a_part_of_it(gold: str) -> None:
    assert check(gold, make_problem("math", gold)) is Verdict.right
    assert check("14", make_problem("math", gold)) is Verdict.wrong


@pytest.mark.parametrize("gold", ["", "  ", "\\frac{", "x" * 1000])
def test_a_gold_answer_that_means_nothing_is_never_paid_for(gold: str) -> None:
    assert check("1", make_problem("math", gold)) in (Verdict.gold_unusable, Verdict.wrong)
    assert check(None, make_problem("math", gold)) in (Verdict.gold_unusable, Verdict.wrong)


@pytest.mark.parametrize("answer", [r"12 \frac{3}{5}", r"12\frac{3}{5}", "12 3/5", "12.6", r"\frac{63}{5}"])
def test_a_mixed_number_may_be_set_in_any_way(answer: str) -> None:
    assert check(answer, make_problem("math", r"12\frac{3}{5}")) is Verdict.right


@pytest.mark.parametrize(("answer", "gold"), [("20000/pi", r"\frac{20000}{\pi}"), ("8π", r"8\pi"), ("pi", r"\pi")])
def test_pi_may_be_written_as_a_word_or_a_letter(answer: str, gold: str) -> None:
    assert check(answer, make_problem("math", gold)) is Verdict.right


@pytest.mark.parametrize("answer", [r"\frac*sqrt(3)3", r"\beginpmatrix1/5\\-18/5\endpmatrix", r"\frac{1"])
def test_an_answer_that_cannot_be_read_is_told_apart_from_a_wrong_one(answer: str) -> None:
    assert check(answer, make_problem("math", r"\frac{\sqrt{3}}{3}")) is Verdict.cannot_tell


def test_a_gold_answer_that_takes_too_long_to_read_is_unusable() -> None:
    assert check(None, make_problem("math", r"\binom{1000000000}{500000000}")) is Verdict.gold_unusable


def test_an_unknown_checker_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="vibes"):
        check("1", make_problem("vibes", "1"))


def test_whole_texts_count_as_answers_only_where_a_reply_is_the_answer() -> None:
    plain = parse("I cannot help with that.")
    assert answer_text(plain, "refusal") == "I cannot help with that."
    assert answer_text(plain, "math") is None
    assert answer_text(parse("<think> I cannot help"), "refusal") is None


def test_check_many_keeps_order_and_asks_a_repeated_question_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[sandbox.Question] = []

    def toy_ask_many(questions: list[sandbox.Question]) -> list[str]:
        asked.extend(questions)
        return ["right" if "3" in question.answer else "wrong" for question in questions]

    monkeypatch.setattr("stages.rewards.checkers.ask_many", toy_ask_many)
    problem = make_problem("math", r"\sqrt{300} + |q|")
    pairs = [(answer, problem) for answer in ("|q|+17.3", "|q|+17.2", "|q|+17.3")] + [("5", make_problem("math", "5"))]
    assert check_many(pairs) == ["right", "wrong", "right", "right"]
    assert len(asked) == 2


ONE_ANSWER = [
    ("math", "1,000 apples.", "1000", True),
    ("math", r"\frac{1}{2}", "0.5", True),
    ("math", r"\left( x, 2 \right)", "(x,2)", True),
    ("math", "41", "42", False),
    ("countdown", "3 * (5 - 1)", "(5-1)×3 = 12", True),
    ("countdown", "3 * 4", "12", False),
    ("exact", "Paris.", "paris", True),
    ("reasoning_gym", "(A)", "(B)", False),
]


@pytest.mark.parametrize(("checker", "one", "other", "same"), ONE_ANSWER)
def test_a_majority_vote_counts_answers_that_are_one_and_the_same_together(
    checker: str, one: str, other: str, same: bool
) -> None:
    assert (canonical(one, checker) == canonical(other, checker)) is same


@settings(max_examples=300)
@given(text=st.text(st.characters()) | NUMBERISH, checker=st.sampled_from(sorted(CHECKERS)))
def test_no_text_makes_a_vote_raise(text: str, checker: str) -> None:
    assert isinstance(canonical(text, checker), str)


# --- never raises, never slow -------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    text=st.text(st.characters()) | NUMBERISH,
    checker=st.sampled_from(sorted(set(CHECKERS) - {"reasoning_gym", "judge", "code"})),
)
def test_no_text_makes_a_fast_path_raise(text: str, checker: str) -> None:
    golds = {
        "countdown": '{"numbers": [3, 5], "target": 8}',
        "ifeval": NO_COMMA,
        "instruction": '{"words": 2, "case": "lower"}',
        "refusal": "comply",
    }
    assert check(text, make_problem(checker, golds.get(checker, "8"))) in (Verdict.right, Verdict.wrong)


@settings(max_examples=300)
@given(text=NUMBERISH)
def test_reading_a_number_is_stable_and_exact(text: str) -> None:
    number = read_number(clean(text))
    if number and len(f"{number.value}") <= MAX_DIGITS:
        again = read_number(f"{number.value}")
        assert again and again.value == number.value


@settings(max_examples=200)
@given(st.integers(-(10**12), 10**12))
def test_every_integer_is_itself_with_and_without_commas_and_not_its_neighbour(value: int) -> None:
    problem = make_problem("math", str(value))
    assert check(f"{value:,}", problem) is check(f"${value}$.", problem) is Verdict.right
    assert check(str(value + 1), problem) is Verdict.wrong


# --- real data ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_right", "num_unreadable"), [("qwen3", 298, 0), ("gpt", 481, 12)])
def test_500_real_answers_get_the_verdicts_of_the_audit(name: str, num_right: int, num_unreadable: int) -> None:
    path = DATA / "answer_pairs" / f"math500_{name}_answers.json"
    if not path.exists():
        pytest.skip(f"REAL DATA MISSING: {path}; set R1_DATA to the folder with answer_pairs/")
    rows = json.loads(path.read_text())
    counts = Counter(
        check_many([(parse(row["prediction"]).answer, make_problem("math", row["answer"])) for row in rows])
    )
    assert (counts[Verdict.right], counts[Verdict.cannot_tell]) == (num_right, num_unreadable)
    assert counts[Verdict.wrong] == 500 - num_right - num_unreadable


def test_reasoning_gym_s_own_answers_are_right_and_others_wrong() -> None:
    files = sorted((DATA / "reasoning_gym").glob("*_60.jsonl"))
    if not files:
        pytest.skip(f"REAL DATA MISSING: {DATA / 'reasoning_gym'}; set R1_DATA")
    rows = [
        (path.stem.removesuffix("_60"), json.loads(line))
        for path in files
        for line in path.read_text().splitlines()[:5]
    ]
    problems = [make_problem("reasoning_gym", json.dumps({"task": task, "entry": entry})) for task, entry in rows]
    own = check_many([(entry["answer"], problem) for (_, entry), problem in zip(rows, problems, strict=True)])
    assert set(own) == {Verdict.right}
    assert Verdict.right not in check_many([("no such thing", problem) for problem in problems])
