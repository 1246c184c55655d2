"""Countdown: prompt, gold and canonical id from numbers and a target, and problems of its own.

Reads rows `{target, nums}` of the hub's set. The configs `generated3` and `generated4` build problems
backwards, by joining random numbers with random operations, so each has a solution; targets (10-99) and
numbers (1-99) have the ranges of the hub's set. The configs `demos3` and `demos4` answer such problems of the
split train with a short search, for a cold start.
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
        numbers, target, solution = _solvable(rng, int(config[-1]))
        key = _key(numbers, target)
        if key not in seen and (bucket(key) < EVAL_SHARE) == (split == "eval"):
            seen.add(key)
            row = _problem(numbers, target) | {"checker": "countdown", "domain": "countdown", "language": "en"}
            yield _demo(row, rng, numbers, target, solution) if config.startswith("demos") else row


def _demo(row: dict[str, str], rng: random.Random, numbers: list[int], target: int, solution: str) -> dict[str, str]:
    """Up to four tries that fail, then the solution that the problem was made from."""
    from stages.chat import TEMPLATES  # here, because listing cards must not load the stages

    tries = [found for _ in range(rng.randint(0, 4)) if (found := _join(rng, numbers)) and found[0] != target]
    told = [f"{_bare(text)} = {value}, not {target}." for value, text in tries]
    reasoning = " ".join([*told, f"{_bare(solution)} = {target}, yes."])
    kept = {name: row[name] for name in ("id", "prompt", "domain", "language")}
    return kept | {"response": TEMPLATES["chat"].response(reasoning, _bare(solution))}


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


def _solvable(rng: random.Random, count: int) -> tuple[list[int], int, str]:
    """Numbers, a target, and an expression that makes it of them."""
    while True:
        numbers = [rng.randint(1, 99) for _ in range(count)]
        found = _join(rng, numbers)
        if found is not None and 10 <= found[0] <= 99:
            return numbers, *found


def _join(rng: random.Random, numbers: Sequence[int]) -> tuple[int, str] | None:
    """Joins random pairs until one value is left, with its expression; None when a division does not come out even."""
    terms = [(number, str(number)) for number in numbers]
    while len(terms) > 1:
        rng.shuffle(terms)
        (left, left_text), (right, right_text) = terms.pop(), terms.pop()
        operation = rng.choice("+-*/")
        if operation == "/" and (right == 0 or left % right):
            return None
        value = {"+": left + right, "-": left - right, "*": left * right}.get(operation, left // (right or 1))
        terms.append((value, f"({left_text} {operation} {right_text})"))
    return terms[0]


def _bare(expression: str) -> str:
    """Without the pair of parentheses around the whole."""
    return expression[1:-1]
