"""Countdown with three different numbers: reach the target with each number used once.

Targets up to the sum of the numbers need + and - only, larger ones need one product. The search goes through
at most four candidates in a fixed order, which a very small model can learn to follow.
"""

from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Self

from data_cards.mini_world.puzzle import Puzzle
from data_cards.mini_world.voice import Voice, badly_tagged, tagged

LARGEST_NUMBER = 18
LARGEST_FACTOR = 9
"""Puzzles that need a product use smaller numbers: each candidate is worked out in one go."""

PRODUCTS = 0.35
SLIP = 0.16
FAULTY_SLIP = 0.5
DIRECT_RIGHT = 0.04

ASK = {
    "en": ("Use {0}, {1} and {2} to make {3}.", "Make {3} from {0}, {1}, {2}."),
    "zh": ("用{0}、{1}、{2}算出{3}。", "怎么用{0}、{1}、{2}得到{3}？"),
}

Candidate = tuple[str, int]


@dataclass(frozen=True)
class Countdown(Puzzle):
    """Three `numbers` in the order they are shown, and the `target`."""

    numbers: tuple[int, int, int]
    target: int

    domain: ClassVar[str] = "countdown"
    checker: ClassVar[str] = "countdown"
    modes: ClassVar[dict[str, float]] = {
        "direct": 0.51,
        "steps": 0.12,
        "check": 0.15,
        "faulty": 0.08,
        "badly_tagged": 0.08,
        "untagged": 0.06,
    }

    @classmethod
    def sample(cls, rng: Random) -> Self:
        product = rng.random() < PRODUCTS
        while True:
            a, b, c = rng.sample(range(1, (LARGEST_FACTOR if product else LARGEST_NUMBER) + 1), 3)
            _, target = rng.choice(_products(a, b, c) if product else _sums(a, b, c))
            if target > (a + b + c if product else 0):
                return cls((a, b, c), target)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """(expression, value) in the order of the search."""
        return _products(*self.numbers) if self.target > sum(self.numbers) else _sums(*self.numbers)

    @property
    def key(self) -> str:
        return f"{self.split_key}={self.target}"

    @property
    def split_key(self) -> str:
        """The numbers alone: a search for one target shows the solutions of others."""
        return "countdown:" + ",".join(map(str, sorted(self.numbers)))

    def gold(self, language: str) -> dict[str, Any]:
        return {"numbers": list(self.numbers), "target": self.target}

    def ask(self, language: str, rng: Random) -> str:
        return rng.choice(ASK[language]).format(*self.numbers, self.target)

    def respond(self, mode: str, language: str, voice: Voice, rng: Random) -> str:
        if mode == "direct":
            return tagged(voice("easy"), self._guess(rng))
        if mode == "untagged":
            return f" {self._guess(rng)}"
        tried, found = self._search(FAULTY_SLIP if mode == "faulty" else SLIP, rng)
        reasoning = voice("try") + _told(tried, voice)
        if mode == "badly_tagged":
            return badly_tagged(reasoning, found, rng)
        if mode == "check":
            check, found = self._checked(tried, voice)
            return tagged(reasoning + check, found)
        return tagged(reasoning, found)

    def _guess(self, rng: Random) -> str:
        right = rng.random() < DIRECT_RIGHT
        every = (*_sums(*self.numbers), *_products(*self.numbers))
        return rng.choice([text for text, value in every if (value == self.target) == right])

    def _search(self, slip: float, rng: Random) -> tuple[list[Candidate], str]:
        """Candidates up to the first that seems to hit the target; a slip sees the target where it is not."""
        tried: list[Candidate] = []
        for text, value in self.candidates:
            seen = self.target if rng.random() < slip else value
            tried.append((text, seen))
            if seen == self.target:
                break
        return tried, tried[-1][0]

    def _checked(self, tried: list[Candidate], voice: Voice) -> tuple[str, str]:
        """The last candidate once more; where it was a slip, "wait", and the search goes on without slips."""
        start = len(tried) - 1
        text, value = self.candidates[start]
        if value == self.target:
            return f"{voice('check')}{text}={value}{voice('ok')}", text
        rest: list[Candidate] = []
        for candidate in self.candidates[start + 1 :]:
            rest.append(candidate)
            if candidate[1] == self.target:
                break
        again = f"{voice('check')}{text}={value}{voice('wait')}{voice('try')}{_told(rest, voice)}"
        return again, rest[-1][0]


def _sums(a: int, b: int, c: int) -> tuple[Candidate, ...]:
    return (
        (f"{a}+{b}+{c}", a + b + c),
        (f"{a}+{b}-{c}", a + b - c),
        (f"{a}+{c}-{b}", a + c - b),
        (f"{b}+{c}-{a}", b + c - a),
    )


def _products(a: int, b: int, c: int) -> tuple[Candidate, ...]:
    return (f"{a}*{b}+{c}", a * b + c), (f"{a}*{c}+{b}", a * c + b), (f"{b}*{c}+{a}", b * c + a)


def _told(tried: list[Candidate], voice: Voice) -> str:
    *missed, (text, value) = tried
    return "".join(f"{t}={v}{voice('no')}" for t, v in missed) + f"{text}={value}{voice('yes')}"
