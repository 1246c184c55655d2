"""The checkers against slow and honest references: Countdown by a reader of our own, expressions by sympy."""

import json
import random
import re
from fractions import Fraction

import pytest

from stages.rewards import countdown
from stages.rewards.checkers import Verdict, check_many
from tests.test_checkers import make_problem

INSERTED = [
    *"+-*/()0.1_=#,;~<\n\t\\",
    "//",
    "**",
    "1*",
    "+0",
    "0x",
    "e0",
    ":=",
    "×",
    r"\times ",
    "²",
    "٣",
    "（",
    "\u200b",
]


def expression(chance: random.Random, numbers: list[int]) -> str:
    """All the numbers, joined two by two until one expression is left."""
    parts = [str(number) for number in chance.sample(numbers, len(numbers))]
    while len(parts) > 1:
        i = chance.randrange(len(parts) - 1)
        joined = f"{parts[i]}{chance.choice('+-*/')}{parts[i + 1]}"
        parts[i : i + 2] = [f"({joined})" if chance.random() < 0.6 else joined]
    return parts[0]


def damaged(chance: random.Random, text: str) -> str:
    for _ in range(chance.choice([0, 1, 1, 2])):
        i = chance.randrange(len(text) + 1)
        text = text[:i] + chance.choice(INSERTED) + text[i + chance.choice([0, 1]) :]
    return text


class Reader:
    """Sums, products and brackets over whole numbers, token by token; ValueError for anything else."""

    def __init__(self, text: str) -> None:
        self.tokens = re.findall(r"[0-9]+|\S", text)
        self.used: list[int] = []

    def sum(self) -> Fraction:
        value = self.product()
        while self.tokens and self.tokens[0] in "+-":
            sign = 1 if self.tokens.pop(0) == "+" else -1
            value += sign * self.product()
        return value

    def product(self) -> Fraction:
        value = self.atom()
        while self.tokens and self.tokens[0] in "*/":
            divides = self.tokens.pop(0) == "/"
            factor = self.atom()
            value = value / factor if divides else value * factor
        return value

    def atom(self) -> Fraction:
        token = self.tokens.pop(0) if self.tokens else ""
        if token == "(":
            value = self.sum()
            if not self.tokens or self.tokens.pop(0) != ")":
                raise ValueError
            return value
        if not re.fullmatch("0+|[1-9][0-9]*", token):
            raise ValueError
        self.used.append(int(token))
        return Fraction(int(token))


def solves(answer: str, numbers: list[int], target: int) -> bool:
    left, equals, stated = answer.replace(r"\times", "*").replace("×", "*").partition("=")
    reader = Reader(left)
    try:
        value = reader.sum()
    except (ValueError, ZeroDivisionError):
        return False
    is_whole = not reader.tokens and not re.search(r"[0-9]\s+[0-9]", left)
    is_stated = not equals or stated.strip() == str(value)
    return is_whole and is_stated and value == target and sorted(reader.used) == sorted(numbers)


@pytest.mark.parametrize("num_cases", [1000, pytest.param(50_000, marks=pytest.mark.fuzz)])
def test_countdown_pays_for_what_a_plain_reader_finds_right_and_for_nothing_else(num_cases: int) -> None:
    chance, num_right = random.Random(num_cases), 0
    for _ in range(num_cases):
        numbers = [chance.randint(0, 9) for _ in range(chance.choice([2, 3, 3, 4]))]
        whole = expression(chance, numbers)
        found = countdown.worked_out(whole)
        target = int(found[0]) if found else 7
        answer = damaged(chance, whole)
        is_right = countdown.is_solution(answer, tuple(numbers), target)
        assert is_right == solves(answer, numbers, target), (answer, json.dumps({"numbers": numbers, "target": target}))
        num_right += is_right
    assert num_cases / 10 < num_right < num_cases * 0.9


@pytest.mark.parametrize(
    "num_cases", [pytest.param(20, marks=pytest.mark.slow), pytest.param(3000, marks=pytest.mark.fuzz)]
)
def test_expressions_get_the_verdict_that_sympy_comes_to_by_simplifying_the_difference(num_cases: int) -> None:
    sp = pytest.importorskip("sympy")
    chance, (x, y) = random.Random(num_cases), sp.symbols("x y")
    leaves = [x, y, sp.Integer(3), sp.Rational(2, 7), sp.sqrt(5), sp.pi]

    def grown(depth: int) -> sp.Expr:
        if not depth:
            return chance.choice(leaves)
        a, b = grown(depth - 1), grown(depth - 1)
        return chance.choice([a + b, a - b, a * b, a / b if b != 0 else a, a ** chance.randint(2, 3)])

    def told(gold: sp.Expr) -> sp.Expr:
        ways = [sp.expand, sp.factor, sp.together, sp.simplify, lambda one: one + sp.Rational(1, 10**7)]
        ways += [lambda one: one.subs(x, y), lambda one: one.subs(x, -x), lambda one: -one, lambda one: one + x - y]
        return chance.choice(ways)(gold)

    golds = [x + grown(2) for _ in range(num_cases)]
    answers = [told(gold) for gold in golds]
    verdicts = check_many(
        [(sp.latex(a), make_problem("math", sp.latex(gold))) for a, gold in zip(answers, golds, strict=True)]
    )
    for gold, answer, verdict in zip(golds, answers, verdicts, strict=True):
        is_equal = sp.simplify(gold - answer) == 0
        assert verdict == (Verdict.right if is_equal else Verdict.wrong), (sp.latex(gold), sp.latex(answer))
