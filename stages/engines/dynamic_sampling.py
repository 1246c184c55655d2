"""Dynamic sampling: a group whose rewards are all equal teaches nothing, so a further problem takes its place.

Source: DAPO (arXiv 2503.14476), section 3.2. How we differ: DAPO samples whole further batches until one is full; here
just as many problems are sampled again as groups are missing, at most so many times, and what is flat after that stays
(it is not trained, as ever). Which problems come next depends on seed and step alone, so a resumed run draws the same.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from stages.engines.samplers import Completion


@dataclass(frozen=True)
class Group:
    """One problem of the data set (`prompt` and `row`), its G responses and the parts of their rewards."""

    problem: dict[str, Any]
    completions: list[Completion]
    parts: list[dict[str, float | None]]

    @property
    def is_flat(self) -> bool:
        """All rewards are equal: there is no advantage."""
        return len({round(part["reward"] or 0.0, 6) for part in self.parts}) == 1


def refilled(
    groups: Sequence[Group], num_rounds: int, problems: Iterator[Any], sample: Callable[[list[Any], int], list[Group]]
) -> tuple[list[Group], list[Group]]:
    """As many groups, flat ones replaced by further ones that are not; and all further groups that were sampled.

    `sample(problems, round)` gives the group of each problem; rounds count from 1.
    """
    kept, further = list(groups), []
    for number in range(1, num_rounds + 1):
        flat = [i for i, group in enumerate(kept) if group.is_flat]
        drawn = list(islice(problems, len(flat)))
        if not drawn:
            break
        fresh = sample(drawn, number)
        further += fresh
        for i, group in zip(flat, (group for group in fresh if not group.is_flat), strict=False):
            kept[i] = group
    return kept, further


def other_problems(problems: Any, taken: Sequence[dict[str, Any]], stream: str) -> Iterator[dict[str, Any]]:
    """Problems of the data set that are not among the taken ones, each once, in the random order named `stream`."""
    draw, seen, ids = Random(stream), set[int](), {problem["row"]["id"] for problem in taken}
    while len(seen) < len(problems):
        index = draw.randrange(len(problems))
        if index not in seen and problems[index]["row"]["id"] not in ids:
            yield problems[index]
        seen.add(index)
