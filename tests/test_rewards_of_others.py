"""The rewards of Open-R1 and of Unsloth's GSM8K notebook: what they pay, and what does not fool them."""

import math
from dataclasses import replace

import pytest

from stages.chat import parse
from stages.rewards import REWARDS, Sample
from stages.rewards.code_format import CodeFormat
from stages.rewards.cosine import Cosine
from stages.rewards.length import Length
from stages.rewards.reasoning_steps import ReasoningSteps

LINES = "<think>\nsix times\nseven\n</think>\n<answer>\n42\n</answer>"
SPACED = " <think> six times seven </think> <answer> 42 </answer>"


def make_sample(text: str, *, gold: str = "42", num_tokens: int = 10, prefilled: bool = False) -> Sample:
    row = {"id": "1", "prompt": "?", "answer": gold, "checker": "math", "domain": "math", "language": "en"}
    return Sample(row, parse(text, prefilled=prefilled), num_tokens, truncated=False, max_tokens=100)


def score(kind: str, text: str, prefilled: bool = False, gold: str = "42") -> float | None:
    return REWARDS[kind]().score(make_sample(text, prefilled=prefilled, gold=gold))


ON_FORM = ("tag_count", "strict_format", "soft_format", "xmlcount")
FORMATS = {
    # text, and what the four of ON_FORM pay for it
    "tags on lines of their own": (LINES, 1.0, 0.5, 0.5, 0.5),
    "the same with a last line break": (LINES + "\n", 1.0, 0.5, 0.5, 0.5),
    "the same with an end token": (LINES + "<|im_end|>", 1.0, 0.5, 0.5, 0.5),
    "tags with spaces": (SPACED, 1.0, 0.0, 0.5, 0.0),
    "an empty text": ("", 0.0, 0.0, 0.0, 0.0),
    "no tags": ("42", 0.0, 0.0, 0.0, 0.0),
    "tags in another case": (LINES.upper(), 0.0, 0.0, 0.0, 0.0),
    "tags alone": ("<think></think><answer></answer>", 1.0, 0.0, 0.0, 0.0),
    "nothing between the tags": ("<think>\n...\n</think>\n<answer>\n\u200b\n</answer>", 1.0, 0.0, 0.0, 0.5),
    "an answer before the reasoning": ("<answer>\n42\n</answer>\n<think>\nx\n</think>\n", 1.0, 0.0, 0.0, 0.231),
    "everything twice": (LINES + LINES, 0.0, 0.0, 0.5, 0.0),
    "a second answer": (LINES + "\n<answer>\n43\n</answer>", 0.5, 0.0, 0.5, 0.25),
    "never closed": ("<think>\nsix times\n", 0.25, 0.0, 0.0, 0.125),
    "an epilogue of 100 characters": (LINES + "x" * 100, 1.0, 0.0, 0.5, 0.4),
    "an epilogue without end": (LINES + "x" * 100_000, 1.0, 0.0, 0.5, 0.0),
    "a run-on after the end token": (LINES + "<|im_end|>" + "x" * 1000, 1.0, 0.5, 0.5, 0.5),
    "talk before the reasoning": ("Sure! " + LINES, 1.0, 0.0, 0.0, 0.5),
}


@pytest.mark.parametrize(("text", *ON_FORM), FORMATS.values(), ids=FORMATS)
def test_rewards_on_form(
    text: str, tag_count: float, strict_format: float, soft_format: float, xmlcount: float
) -> None:
    values = (tag_count, strict_format, soft_format, xmlcount)
    assert tuple(score(kind, text) for kind in ON_FORM) == pytest.approx(values)


@pytest.mark.parametrize("kind", ON_FORM)
def test_a_think_tag_that_the_prompt_opened_counts(kind: str) -> None:
    assert score(kind, LINES.removeprefix("<think>"), prefilled=True) == score(kind, LINES)


@pytest.mark.parametrize("kind", [*ON_FORM, "reasoning_steps"])
@pytest.mark.parametrize(
    "piece", ["<think>\n", "</think>\n<answer>\n", "</think> ", "\n- ", "First, ", " " * 50, "1.\n"]
)
def test_a_megabyte_of_one_piece_takes_no_time(kind: str, piece: str) -> None:
    assert score(kind, piece * (1_000_000 // len(piece))) is not None


@pytest.mark.parametrize(
    ("answer", "gold", "correctness", "is_int"),
    [
        ("42", "42", 2.0, 0.5),
        (" 42 ", "42", 2.0, 0.5),
        ("1,000", "1000", 2.0, 0.5),
        ("1000", "1,000", 2.0, 0.5),
        ("-3", "-3", 2.0, 0.5),
        ("$42", "42", 2.0, 0.0),
        ("42.0", "42", 0.0, 0.0),
        ("43", "42", 0.0, 0.5),
        ("42 apples", "42", 0.0, 0.0),
        ("42 or 43", "42", 0.0, 0.0),
        ("4²", "42", 0.0, 0.0),
        ("٤٢", "42", 0.0, 0.0),
        ("1,00", "100", 2.0, 0.0),
        ("", "42", 0.0, 0.0),
        ("", "", None, 0.0),
    ],
)
def test_correctness_compares_letters_and_int_looks_for_a_whole_number(
    answer: str, gold: str, correctness: float | None, is_int: float
) -> None:
    text = f"<think>\nx\n</think>\n<answer>\n{answer}\n</answer>"
    assert (score("correctness", text, gold=gold), score("int", text)) == (correctness, is_int)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Step 1: add\nStep 2: take\nStep 3: look", 1.0),
        ("1. add\n2. take", 2 / 3),
        ("- add\n- take\n* look\n- rest", 1.0),
        ("First, this. Next, that. Finally, all.", 1.0),
        ("首先算，然后加", 2 / 3),
        ("first 2+2=4 then 4+4=8", 0.0),
        ("First, First, First, First,", 1 / 3),
        ("- same\n- same\n- same", 1 / 3),
        ("Step 1: Step 1: Step 1:", 1 / 3),
        ("it costs 1.50 and 2.75", 0.0),
        ("a - b - c - d", 0.0),
        ("", 0.0),
    ],
)
def test_reasoning_steps_counts_different_markers(text: str, value: float) -> None:
    assert score("reasoning_steps", text) == pytest.approx(value)


def test_reasoning_steps_can_look_at_the_reasoning_alone() -> None:
    sample = make_sample("<think> nothing </think><answer> 1. a\n2. b\n3. c </answer>")
    assert ReasoningSteps(scope="reasoning").score(sample) == 0.0


RIGHT, WRONG = "<think> x </think><answer> 42 </answer>", "<think> x </think><answer> 43 </answer>"


@pytest.mark.parametrize(
    ("text", "num_tokens", "value"),
    [
        (RIGHT, 0, 1.0),
        (RIGHT, 50, 0.75),
        (RIGHT, 100, 0.5),
        (RIGHT, 200, 0.5),
        (WRONG, 0, 0.0),
        (WRONG, 50, -0.25),
        (WRONG, 100, -0.5),
        (WRONG, 10_000, -0.5),
        ("", 100, -0.5),
    ],
)
def test_cosine_goes_from_one_value_to_the_other_and_no_further(text: str, num_tokens: int, value: float) -> None:
    assert Cosine().score(make_sample(text, num_tokens=num_tokens)) == pytest.approx(value)


def test_cosine_has_its_own_limit_and_no_say_without_a_gold() -> None:
    quarter = 0.5 + 0.5 * (1 + math.cos(math.pi / 4)) / 2
    assert Cosine(max_len=40).score(make_sample(RIGHT, num_tokens=10)) == pytest.approx(quarter)
    assert Cosine().score(make_sample(RIGHT, gold="")) is None


def group(*responses: tuple[str, int], name: str = "1", gold: str = "42") -> list[Sample]:
    """Samples of one problem: (text, tokens) each."""
    samples = [make_sample(text, num_tokens=num_tokens, gold=gold) for text, num_tokens in responses]
    return [replace(sample, problem={**sample.problem, "id": name}) for sample in samples]


@pytest.mark.parametrize(
    ("responses", "values"),
    [
        ([(RIGHT, 10), (RIGHT, 20), (RIGHT, 30)], [0.5, 0.0, -0.5]),
        ([(RIGHT, 10), (WRONG, 10), (WRONG, 30), (RIGHT, 30)], [0.5, 0.0, -0.5, -0.5]),
        ([(RIGHT, 10), (RIGHT, 10)], [0.0, 0.0]),
        ([(RIGHT, 10)], [0.0]),
        ([("", 0), (RIGHT, 100)], [0.0, -0.5]),
        ([], []),
    ],
)
def test_length_compares_the_responses_to_one_problem(responses: list[tuple[str, int]], values: list[float]) -> None:
    assert Length().score_many(group(*responses)) == pytest.approx(values)


def test_length_compares_no_problem_with_another_and_has_no_say_without_a_gold() -> None:
    short, long = group((RIGHT, 10), (RIGHT, 20)), group((RIGHT, 100), (WRONG, 200), name="2")
    mixed = [short[0], long[0], short[1], long[1]]
    assert Length().score_many(mixed) == pytest.approx([0.5, 0.5, -0.5, -0.5])
    assert Length().score_many(group((RIGHT, 10), (RIGHT, 20), gold="")) == [None, None]


BLOCK = "```python\ndef f(): ...\n```"


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (BLOCK, 1.0),
        (f"So:\n{BLOCK}\nThat is all.", 1.0),
        ("```Python\nx = 1\n```", 1.0),
        ("```python \nx = 1```", 1.0),
        ("x = 1", 0.0),
        ("```\nx = 1\n```", 0.0),
        ("```js\nx = 1\n```", 0.0),
        ("```pythonista\nx = 1\n```", 0.0),
        ("```python\n\n```", 0.0),
        ("```python x = 1```", 0.0),
        ("```python\nx = 1", 0.0),
        (BLOCK + "\n" + BLOCK, 0.0),
        (BLOCK + "\n```", 0.0),
        ("```python\n" * 50_000, 0.0),
        ("", 0.0),
    ],
)
def test_code_format_wants_one_program_marked_as_such(answer: str, value: float) -> None:
    assert CodeFormat().score(coded(f"<think> x </think><answer> {answer} </answer>")) == value


def coded(text: str) -> Sample:
    sample = make_sample(text)
    return replace(sample, problem={**sample.problem, "checker": "code"})


def test_code_format_looks_into_no_other_place_and_at_no_other_problem() -> None:
    assert CodeFormat().score(coded(f"<think> {BLOCK} </think><answer> x </answer>")) == 0.0
    assert CodeFormat().score(coded(f"<answer> {BLOCK} </answer>")) == 0.0
    assert CodeFormat(programming_language="js").score(coded(f"<think> x </think><answer> {BLOCK} </answer>")) == 0.0
    assert not CodeFormat().applies(make_sample(BLOCK)) and CodeFormat().applies(coded(BLOCK))


def test_the_names_of_open_r1_and_of_the_notebook_are_kinds() -> None:
    open_r1 = {"accuracy", "format", "tag_count", "reasoning_steps", "length", "cosine", "repetition_penalty"}
    more = {"soft_overlong_punishment", "code", "binary_code", "code_format"}
    notebook = {"correctness", "int", "strict_format", "soft_format", "xmlcount"}
    assert open_r1 | more | notebook <= set(REWARDS)
