"""Sums and differences of three or four numbers, some with a small product in front; all values in 0..99."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Self

from data_cards.mini_world.puzzle import Puzzle
from data_cards.mini_world.voice import Voice, badly_tagged, tagged

LARGEST = 99
SMALLEST_OF_THE_LARGEST = 19
"""One plain term is at least this large. Countdown stays below: its candidates are no arithmetic problems."""

STEP_NOISE = 0.15
FAULTY_STEP_NOISE = 0.6
DIRECT_RIGHT = 0.04

ASK = {
    "en": ("What is {0}?", "Calculate {0}.", "{0}=?"),
    "zh": ("{0}等于多少？", "计算{0}。", "{0}=？"),
}
OPENINGS = {"en": "Start with {0}", "zh": "先有{0}"}
CHANGES = {"en": {"+": ", add {0}", "-": ", take away {0}"}, "zh": {"+": "，加{0}", "-": "，减{0}"}}
ENDINGS = {"en": ".", "zh": "，是多少？"}
APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@dataclass(frozen=True)
class Arithmetic(Puzzle):
    """`numbers` joined by `ops`, e.g. (37, 25, 14) and "+-", from the left; only the first may be "*"."""

    numbers: tuple[int, ...]
    ops: str

    domain: ClassVar[str] = "arithmetic"
    checker: ClassVar[str] = "math"
    modes: ClassVar[dict[str, float]] = {
        "direct": 0.49,
        "steps": 0.13,
        "check": 0.15,
        "faulty": 0.08,
        "badly_tagged": 0.08,
        "untagged": 0.07,
    }

    @classmethod
    def sample(cls, rng: Random) -> Self:
        while True:
            puzzle = cls._draw(rng)
            values = [value for *_, value in puzzle.steps(lambda value: value)]
            plain = puzzle.numbers[2:] if puzzle.ops[0] == "*" else puzzle.numbers
            if min(values) >= 0 and max(values) <= LARGEST and max(plain) >= SMALLEST_OF_THE_LARGEST:
                return puzzle

    @classmethod
    def _draw(cls, rng: Random) -> Self:
        kind = rng.random()
        if kind < 0.3:
            factors = (rng.randint(2, 9), rng.randint(2, 9))
            return cls((*factors, rng.randint(SMALLEST_OF_THE_LARGEST, 60)), "*" + rng.choice("+-"))
        count = 3 if kind < 0.7 else 4
        numbers = tuple(rng.randint(2, 60 if count == 3 else 40) for _ in range(count))
        return cls(numbers, "".join(rng.choice("+-") for _ in numbers[1:]))

    def steps(self, heard: Callable[[int], int]) -> Iterator[tuple[int, str, int, int]]:
        """(left, op, right, value) of each step; `heard` may spoil a value, the next step goes on from it."""
        value = self.numbers[0]
        for op, right in zip(self.ops, self.numbers[1:], strict=True):
            left, value = value, heard(APPLY[op](value, right))
            yield left, op, right, value

    @property
    def expression(self) -> str:
        return str(self.numbers[0]) + "".join(f"{o}{n}" for o, n in zip(self.ops, self.numbers[1:], strict=True))

    @property
    def key(self) -> str:
        signs, numbers = "+" + self.ops, list(map(str, self.numbers))
        if self.ops[0] == "*":
            signs, numbers = "+" + self.ops[1:], ["*".join(sorted(numbers[:2])), *numbers[2:]]
        return "arithmetic:" + "".join(sorted(s + n for s, n in zip(signs, numbers, strict=True)))

    @property
    def value(self) -> int:
        return [value for *_, value in self.steps(lambda value: value)][-1]

    def gold(self, language: str) -> str:
        return str(self.value)

    def ask(self, language: str, rng: Random) -> str:
        if self.ops[0] != "*" and rng.random() < 0.25:
            changes = (CHANGES[language][o].format(n) for o, n in zip(self.ops, self.numbers[1:], strict=True))
            return OPENINGS[language].format(self.numbers[0]) + "".join(changes) + ENDINGS[language]
        return rng.choice(ASK[language]).format(self.expression)

    def respond(self, mode: str, language: str, voice: Voice, rng: Random) -> str:
        if mode == "direct":
            return tagged(voice("easy"), str(self._guess(rng)))
        if mode == "untagged":
            return f" {self._guess(rng)}"
        noise = FAULTY_STEP_NOISE if mode == "faulty" else STEP_NOISE
        steps = list(self.steps(lambda value: _spoiled(value, rng) if rng.random() < noise else value))
        reasoning, answer = _told(steps, voice), str(steps[-1][-1])
        if mode == "badly_tagged":
            return badly_tagged(reasoning, answer, rng)
        if mode == "check":
            return tagged(reasoning + self._checked(steps, voice), str(self.value))
        return tagged(reasoning, answer)

    def _guess(self, rng: Random) -> int:
        return (
            self.value if rng.random() < DIRECT_RIGHT else max(0, self.value + rng.choice((-1, 1)) * rng.randint(1, 14))
        )

    def _checked(self, told: list[tuple[int, str, int, int]], voice: Voice) -> str:
        """Every step once more, without faults; says "wait" where what was told first was wrong."""
        parts, again = [], self.steps(lambda value: value)
        for i, (first, (left, op, right, value)) in enumerate(zip(told, again, strict=True)):
            surprise = voice("wait") if first[0] == left and first[-1] != value else ""
            parts.append(f"{voice('and' if i else 'check')}{left}{op}{right}={value}{surprise}")
        return "".join(parts) + voice("ok")


def _told(steps: list[tuple[int, str, int, int]], voice: Voice) -> str:
    return "".join(
        f"{voice('then' if i else 'first')}{left}{op}{right}={value}"
        for i, (left, op, right, value) in enumerate(steps)
    )


def _spoiled(value: int, rng: Random) -> int:
    """A slip: a few too many or too few, or a forgotten carry; never the value itself."""
    return abs(value + rng.choice((-10, -2, -1, 1, 2, 10))) if value else 1
