"""Countdown: is this expression made of the given numbers, and does it reach the target?

Reads an answer such as `(5 - 3) * 4` and the gold `{"numbers": [3, 5, 4], "target": 8}`. Any solution counts,
not one.
Source: the Countdown task of TinyZero and mini-R1. How we differ: they filter characters and call `eval`,
which lets through `**`, `//` and decimals that glue two numbers into one; here the expression is parsed to a
tree (Python's `ast`, never evaluated as code) and only + - * / and parentheses over whole numbers are known.
The arithmetic is exact. × ÷ − and their LaTeX commands are synonyms. A tail `= 8` is allowed if it states the
target; any other is wrong.
"""

import ast
import json
import operator
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

MAX_CHARS = 200
_ALLOWED = frozenset("0123456789+-*/() ")
_SYNONYMS = ((r"\times", "*"), (r"\cdot", "*"), (r"\div", "/"), ("×", "*"), ("·", "*"), ("÷", "/"), ("−", "-"))
_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def is_solution(answer: str, numbers: tuple[int, ...], target: int) -> bool:
    """Whether the answer uses each number exactly once and its value is the target. Never raises."""
    found = worked_out(answer)
    return found is not None and found == (target, tuple(sorted(numbers)))


def worked_out(answer: str) -> tuple[Fraction, tuple[int, ...]] | None:
    """The exact value of an expression and the numbers in it, in order of size; two answers are one and the
    same when these are. None for what is no expression, or is followed by `= ` another value. Never raises.
    """
    if len(answer) > MAX_CHARS:
        return None
    for synonym, sign in _SYNONYMS:
        answer = answer.replace(synonym, sign)
    expression, equals, stated = (" ".join(part.split()) for part in answer.partition("="))
    if not set(expression) <= _ALLOWED:
        return None
    used: Counter[int] = Counter()
    try:
        value = _value(ast.parse(expression, mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return None if equals and stated != str(value) else (value, tuple(sorted(used.elements())))


@lru_cache(maxsize=4096)
def read_gold(gold: str) -> tuple[tuple[int, ...], int] | None:
    """Numbers and target of a gold answer; None if it is not one."""
    try:
        fields = json.loads(gold)
        numbers, target = fields["numbers"], fields["target"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(numbers, list) or not numbers or type(target) is not int:
        return None
    whole = all(type(number) is int and number >= 0 for number in numbers)
    return (tuple(numbers), target) if whole else None


def _value(node: ast.expr, used: Counter[int]) -> Fraction:
    """Exact value of the tree; the numbers met on the way are counted in `used`."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used[node.value] += 1
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, used), _value(node.right, used))
    raise ValueError("only + - * / and whole numbers")
