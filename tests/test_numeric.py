"""stages/rewards/numeric.py: two texts are worth the same, are not, or can not be told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.rewards.numeric import same_value

SAME = [
    (r"\frac{1}{2}x", "x/2"),
    ("(x+1)(x+2)", "x^2+3x+2"),
    (r"\sqrt[3]{5}", "5^{1/3}"),
    (r"\frac12 \pi", r"\frac{\pi}{2}"),
    (r"\sin^2 x + \cos^2 x + y", "1+y"),
    (r"\sin 2x", r"2\sin x\cos x"),
    (r"\log_2 8 + x", "3 + x"),
    ("6+9i", "9i+6"),
    ("(3, pi/2)", r"\left( 3, \frac{\pi}{2} \right)"),
    (r"(-\infty,2)\cup(3,4]", r"(-\infty, 2) \cup (3, 4]"),
    (r"\{1, 2\}", r"\{2, 1\}"),
    ("y = x + x", "y=2x"),
    ("(10^{20} + 1 - 10^{20})x", "x"),
]
APART = [
    ("x+y", "x-y"),
    (r"10^{-7}\pi", r"2 \cdot 10^{-7}\pi"),
    ("3.14159", r"\pi + 0.001"),
    ("1.41421356", r"\sqrt{2}"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "[1,2]"),
    (r"\{1,2\}", "(1,2)"),
    ("(1,2)", "(1,2,3)"),
    (r"(-\infty,2)", "(-3,2)"),
    (r"\{1, 2\}", r"\{1, 3\}"),
    ("(x+y+z+w)^{60}", "x+y"),
    ("9^{9^{9^{9}}}", "x"),
    ("y = x^3", "y=2x"),
]
UNKNOWN = [
    ("", "x"),
    ("(", "x"),
    ("}{", "x"),
    ("1/2x", "x/2"),
    (r"1\frac{1}{2}x", "x"),
    (r"\log x", r"\ln x"),
    (r"\sin x/2", "x"),
    ("x^10", "x"),
    (r"\sqrt{-x}", "x"),
    ("58,500x", "58500x"),
    ("(0,1)", "0,1"),
    (r"[0,1)\cup[1,2)", "[0,2)"),
    ("x = 3", "3"),
    ("y = 2", "x = 2"),
    ("banana!", "x"),
    (r"\sum_{i=1}^{3} i", "6"),
    ("0^{-1}", "x"),
    ("(" * 400, "x"),
]


@pytest.mark.parametrize(("answer", "gold"), SAME)
def test_equal_values_agree_however_they_are_written(answer: str, gold: str) -> None:
    assert same_value(answer, gold) is same_value(gold, answer) is True


@pytest.mark.parametrize(("answer", "gold"), APART)
def test_other_values_are_told_apart(answer: str, gold: str) -> None:
    assert same_value(answer, gold) is same_value(gold, answer) is False


@pytest.mark.parametrize(("answer", "gold"), UNKNOWN)
def test_what_is_ambiguous_or_not_read_is_left_to_the_other_checker(answer: str, gold: str) -> None:
    assert same_value(answer, gold) is same_value(gold, answer) is None


EXPRESSIONS = st.recursive(
    st.integers(1, 20).map(str) | st.sampled_from("xyz"),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", r" \cdot "]), inner).map(lambda it: f"({''.join(it)})"),
    max_leaves=8,
)


@settings(max_examples=200)
@given(EXPRESSIONS)
def test_python_and_we_work_out_the_same_sums(text: str) -> None:
    value = eval(text.replace(r"\cdot", "*"), {"x": 3.0, "y": 4.0, "z": 5.0})
    ours = same_value(text.replace("x", "3").replace("y", "4").replace("z", "5"), f"{value:.1f}")
    assert ours in (True, None) and (ours or value < 0)


SYMBOLS = [*"0123456789.xyei+-*/^_(){}[],= ", r"\frac", r"\sqrt", r"\log", r"\sin", r"\cup", r"\infty", r"\{", r"\}"]


@settings(max_examples=500)
@given(st.lists(st.sampled_from(SYMBOLS), max_size=30).map("".join))
def test_no_text_raises(text: str) -> None:
    assert same_value(text, "x") in (True, False, None)
