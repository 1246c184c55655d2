r"""The second checker of mathematical answers: what two texts are worth at the same random points.

`same_value(answer, gold)` reads numbers, letters, `+ - * / ^`, fractions, roots, logarithms and trigonometry, in LaTeX
or plain, alone or in tuples, intervals, sets and unions, with its own small reader, and puts in a positive number for
every letter. It says False when the values are apart or the brackets differ, True when they agree, and None when it can
not read one of the texts or must not trust the arithmetic (roots and logarithms of negative numbers, `1/2x`, `\log`
without a base). No text raises, hangs or needs more than floating-point numbers.

What it is for: `math_answer.decide` refuses at once what is clearly another value, before math-verify sees it, so that
what this reader can read is paid for only if two different readers agree. And it audits math-verify:
`benchmarks/audit_verifier.py`. Agreement alone pays nothing: sqrt(x^2) and x agree at positive points.
"""

import cmath
import math
import random
import re
from collections.abc import Callable, Iterator
from functools import lru_cache

NUM_POINTS = 3
TOLERANCE = 1e-9
"""Relative difference from which two values are apart: 1.41421356 is not the root of 2. math-verify rounds to six
places."""

Value = float | complex
_OPENING, _CLOSING = ("(", "[", "{", r"\{"), (")", "]", "}", r"\}")
_NOTHING = re.compile(r"\s+|\\(?:left|right|displaystyle)(?![A-Za-z])|\\[!,;: ]")
_TOKEN = re.compile(
    rf"{_NOTHING.pattern}"
    r"|\\[A-Za-z]+|\\[{}]|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
    r"|(?:arc(?:sin|cos|tan)|sqrt|sin|cos|tan|exp|ln|pi)(?![A-Za-z])"
    r"|[A-Za-z](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,8}\}))?|[-+*/^_(){}\[\],∞π×·−]"
)
_ALIKE = {r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\cdot": "*", r"\times": "*", "×": "*"}
_ALIKE |= {"·": "*", r"\div": "/", "−": "-", "π": r"\pi", "∞": r"\infty", r"\lbrace": r"\{", r"\rbrace": r"\}"}
_PLAIN = ("pi", "sqrt", "sin", "cos", "tan", "exp", "ln", "arcsin", "arccos", "arctan")
_ALIKE |= {name: "\\" + name for name in _PLAIN}
_THOUSANDS = re.compile(
    r"(?<=[0-9])(?:,|\{,\})(?:\s|\\!)*(?=[0-9]{3}(?![0-9]))"
)  # or the next of a list: not read here
_NAMED = re.compile(r"\s*([A-Za-z])\s*=([^=]+)")
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s*([0-9])\s*([0-9])")
_SHORT_ROOT = re.compile(r"\\sqrt\s*([0-9])(?![0-9])")
_GREEK = {"\\" + name for name in ("alpha", "beta", "gamma", "delta", "epsilon", "theta", "lambda", "mu", "nu", "rho")}
_GREEK |= {"\\" + name for name in ("sigma", "tau", "phi", "varphi", "omega")}
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    r"\sin": math.sin,
    r"\cos": math.cos,
    r"\tan": math.tan,
    r"\exp": math.exp,
    r"\ln": math.log,
    r"\arcsin": math.asin,
    r"\arccos": math.acos,
    r"\arctan": math.atan,
}


class Unreadable(Exception):
    """The text is not of the few kinds that are read here, or its value can not be trusted."""


def same_value(answer: str, gold: str) -> bool | None:
    """Whether both are worth the same; None = can not tell."""
    named = _NAMED.fullmatch(answer), _NAMED.fullmatch(gold)
    if named[0] and named[1] and named[0][1] == named[1][1]:  # y = 2x + 3
        answer, gold = named[0][2], named[1][2]
    try:
        mine, theirs = _pieces(answer), _pieces(gold)
        kinds = [kind for kind, _ in mine], [kind for kind, _ in theirs]
        if kinds[0] != kinds[1]:
            return False if len(mine) == len(theirs) == 1 and all(map(all, kinds)) else None
        found = [_same_piece(kind, a, b) for (kind, a), (_, b) in zip(mine, theirs, strict=True)]
    except (Unreadable, ArithmeticError, ValueError, RecursionError):
        return None
    return all(found)


def _same_piece(kind: str, mine: list[str], theirs: list[str]) -> bool:
    if kind in ("{}", ""):  # a set, or a list without brackets
        pairs = [[_close(a, b) for b in theirs] for a in mine]
        return all(map(any, pairs)) and all(map(any, zip(*pairs, strict=True)))
    return len(mine) == len(theirs) and all(map(_close, mine, theirs))


def _close(mine: str, theirs: str) -> bool:
    return all(_agree(*one, *other) for one, other in zip(_values(mine), _values(theirs), strict=True))


def _agree(a: Value, largest_a: float, b: Value, largest_b: float) -> bool:
    """Whether two values agree; what was lost in the largest sums on the way is forgiven."""
    if a == b or math.inf in (abs(a), abs(b)):
        return a == b
    difference, lost = abs(a - b), 1e-12 * max(largest_a, largest_b)
    return difference <= max(TOLERANCE * max(abs(a), abs(b)), lost)


@lru_cache(maxsize=4096)
def _values(text: str) -> tuple[tuple[Value, float], ...]:
    """At each point the value of one expression, and the largest number added on the way."""
    infinity = {r"\infty": math.inf, r"+ \infty": math.inf, r"- \infty": -math.inf}.get(text)
    if infinity is not None:
        return ((infinity, 0.0),) * NUM_POINTS
    return tuple(_Reader(text, point).read() for point in range(NUM_POINTS))


def _pieces(text: str) -> list[tuple[str, list[str]]]:
    """The parts of a union: its brackets ("()", "[)", "{}", or "" without), and the expressions between commas."""
    if _THOUSANDS.search(text):
        raise Unreadable
    tokens = list(_tokens(_SHORT_ROOT.sub(r"\\sqrt{\1}", _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text))))
    return [_piece(part) for part in _split(tokens, r"\cup")]


def _piece(tokens: list[str]) -> tuple[str, list[str]]:
    kind = ""
    if _encloses(tokens):
        inner = _split(tokens[1:-1], ",")
        if tokens[0] == r"\{" or len(inner) > 1:
            kind, tokens = (tokens[0] + tokens[-1]).replace("\\", ""), tokens[1:-1]
    return kind, [" ".join(part) for part in _split(tokens, ",")]


def _split(tokens: list[str], mark: str) -> list[list[str]]:
    """Split where `mark` stands outside of all brackets. `[0, 1)` closes as well as `[0, 1]`."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth < 0:
            raise Unreadable
        if token == mark and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    if depth or not all(parts):
        raise Unreadable
    return parts


def _encloses(tokens: list[str]) -> bool:
    """Whether the first bracket is closed by the last token and not before."""
    depth = 0
    for place, token in enumerate(tokens):
        depth += (token in _OPENING) - (token in _CLOSING)
        if depth == 0:
            return place == len(tokens) - 1 > 0
    return False


def _tokens(text: str) -> Iterator[str]:
    end = 0
    for found in _TOKEN.finditer(text):
        if found.start() != end:
            break
        end = found.end()
        if not _NOTHING.fullmatch(found[0]):
            yield _ALIKE.get(found[0], found[0])
    if end != len(text):
        raise Unreadable


class _Reader:
    """Reads one expression and works it out at one point, from left to right."""

    def __init__(self, text: str, point: int) -> None:
        self.tokens = text.split()
        self.point = point
        self.largest = 0.0

    def read(self) -> tuple[Value, float]:
        value = self.sum()
        if self.tokens or cmath.isnan(value):
            raise Unreadable
        return value, self.largest

    def next(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def take(self, *wanted: str) -> str:
        """The next token if it is one of these (of any, if none are given), else ""."""
        return self.tokens.pop(0) if self.tokens and (not wanted or self.tokens[0] in wanted) else ""

    def need(self, wanted: str) -> None:
        if not self.take(wanted):
            raise Unreadable

    def sum(self) -> Value:
        value = self.product()
        while sign := self.take("+", "-"):
            term = self.product()
            self.largest = max(self.largest, abs(value), abs(term))
            value += term if sign == "+" else -term
        return value

    def product(self) -> Value:
        value, divided = self.signed(), False
        while self.next() not in ("", "+", "-", ")", "]", "}", r"\}", ","):
            sign = self.take("*", "/")
            if not sign and (divided or self.next()[0] in ".0123456789"):
                raise Unreadable  # 1/2x, 2 3
            factor = self.signed() if sign else self.power()
            value = value / factor if sign == "/" else value * factor
            divided = sign == "/"
        return value

    def signed(self) -> Value:
        if sign := self.take("+", "-"):
            return self.signed() if sign == "+" else -self.signed()
        is_number = self.next()[:1].isdigit()
        value = self.power()
        if is_number and self.next() == r"\frac":
            raise Unreadable  # 1\frac{1}{2}: a mixed number or a product
        return value

    def power(self) -> Value:
        value = self.atom()
        return _power(value, self.exponent()) if self.take("^") else value

    def exponent(self) -> Value:
        sign = -1.0 if self.take("-") else 1.0
        if len(self.next()) > 1 and self.next()[0].isdigit():
            raise Unreadable  # x^10
        return sign * self.atom()

    def atom(self) -> Value:
        token = self.take()
        if token in ("(", "[", "{"):
            value = self.sum()
            self.need(_CLOSING[_OPENING.index(token)])
            return value
        if token[:1] in (".", *"0123456789") and token:
            return float(token)
        if token in (r"\frac", r"\sqrt"):
            return self.fraction() if token == r"\frac" else self.root()
        if token in _FUNCTIONS or token == r"\log":
            return self.function(token)
        return self.letter(token)

    def letter(self, token: str) -> Value:
        known = {"e": math.e, r"\pi": math.pi, "i": 1j}
        if token in known:
            return known[token]
        if token in _GREEK or token[:1].isalpha():
            return _sample(token, self.point)
        raise Unreadable

    def group(self) -> Value:
        if self.next() not in ("{", "("):
            raise Unreadable
        return self.atom()

    def fraction(self) -> Value:
        return self.group() / self.group()

    def root(self) -> Value:
        degree: Value = 2.0
        if self.take("["):
            degree = self.sum()
            self.need("]")
        return _power(self.group(), 1 / degree)

    def function(self, name: str) -> Value:
        base = math.e
        if name == r"\log":
            self.need("_")
            base = _real(self.exponent())
        exponent = self.exponent() if self.take("^") else 1.0
        argument = _real(self.argument())
        value = math.log(argument) / math.log(base) if name == r"\log" else _FUNCTIONS[name](argument)
        if exponent == -1:
            raise Unreadable  # the inverse, or one over it
        return _power(value, exponent)

    def argument(self) -> Value:
        """What a function is taken of: brackets, or `2x` up to a sign or the next function."""
        if self.next() in ("{", "("):
            value = self.atom()
            if self.next() == "^":
                raise Unreadable  # \sin(x)^2
            return value
        value = self.power()
        while self.next()[:1].isalpha() or self.next() in (r"\pi", *_GREEK):
            value *= self.power()
        if self.next() in ("/", "*", "(", "["):
            raise Unreadable  # \sin x/2
        return value


@lru_cache(maxsize=1024)
def _sample(letter: str, point: int) -> float:
    return random.Random(f"{letter} {point}").uniform(0.6, 3.0)


def _real(value: Value) -> float:
    if isinstance(value, complex):
        raise Unreadable
    return value


def _power(base: Value, exponent: Value) -> Value:
    """Only where there is one value: a whole exponent, or a positive base. Infinite where floats end."""
    if isinstance(exponent, float) and exponent.is_integer():
        exponent = int(exponent)
    elif isinstance(base, complex) or base < 0:
        raise Unreadable
    try:
        return complex(base) ** exponent if isinstance(base, complex) else base**exponent
    except OverflowError:
        if isinstance(base, complex) or isinstance(exponent, complex) or base < 0:
            raise
        return math.inf
