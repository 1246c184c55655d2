"""Countdown: prompt, gold and canonical id from numbers and a target, and problems of its own.

Reads rows `{target, nums}` of the hub's set. The configs `generated3` and `generated4` build problems
backwards, by joining random numbers with random operations, so each has a solution; targets (10-99) and
numbers (1-99) have the ranges of the hub's set.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.card import bucket

PROMPT = (
    "Use each of the numbers {numbers} exactly once, with + - * / and parentheses, to make {target}. "
    "Answer with the expression."
)
DEFAULT_SIZE = {"train": 4000, "eval": 500}
EVAL_SHARE = 0.1


def row(raw: Mapping[str, Any], config: str | None) -> dict[str, str] | None:
    """One problem, or None when the config asks for another count of numbers."""
    numbers = [int(number) for number in raw["nums"]]
    if config is not None and len(numbers) != int(config):
        return None
    return _problem(numbers, int(raw["target"]))


def rows(split: str, config: str | None, limit: int | None, seed: int) -> Iterator[dict[str, str]]:
    """`limit` different problems of one split; those of train and eval differ whatever the seeds."""
    assert config is not None, "only the generated configs come here"
    rng = random.Random(f"countdown {config} {split} {seed}")
    seen: set[str] = set()
    while len(seen) < (limit or DEFAULT_SIZE[split]):
        numbers, target = _solvable(rng, int(config.removeprefix("generated")))
        key = _key(numbers, target)
        if key not in seen and (bucket(key) < EVAL_SHARE) == (split == "eval"):
            seen.add(key)
            yield _problem(numbers, target) | {
                "checker": "countdown",
                "domain": "countdown",
                "language": "en",
            }


def _problem(numbers: Sequence[int], target: int) -> dict[str, str]:
    listed = ", ".join(map(str, numbers))
    return {
        "id": _key(numbers, target),
        "prompt": PROMPT.format(numbers=listed, target=target),
        "answer": json.dumps({"numbers": list(numbers), "target": target}),
    }


def _key(numbers: Sequence[int], target: int) -> str:
    """The same for every order of the numbers: reorderings are the same problem."""
    return hashlib.sha256(f"countdown {target} {sorted(numbers)}".encode()).hexdigest()[:16]


def _solvable(rng: random.Random, count: int) -> tuple[list[int], int]:
    while True:
        numbers = [rng.randint(1, 99) for _ in range(count)]
        target = _join(rng, list(numbers))
        if target is not None and 10 <= target <= 99:
            return numbers, target


def _join(rng: random.Random, values: list[int]) -> int | None:
    """Joins random pairs until one value is left; None when a division does not come out even."""
    while len(values) > 1:
        rng.shuffle(values)
        left, right = values.pop(), values.pop()
        operation = rng.choice("+-*/")
        if operation == "/" and (right == 0 or left % right):
            return None
        values.append({"+": left + right, "-": left - right, "*": left * right}.get(operation, left // (right or 1)))
    return values[0]
