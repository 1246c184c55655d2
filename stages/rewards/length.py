"""Length: among the responses to one problem, a short one is worth more than a long one.

Formula, with n tokens and the least and most of the problem's responses: 0.5 - (n - least) / (most - least) for a right
answer, the same but never above 0 for any other; 0 where all are equally long; None when nothing can be told of the
answer. Range [-0.5, 0.5].
Source: Kimi k1.5 (arXiv 2501.12599), section 2.3.3, its length penalty; the name is Open-R1's (src/open_r1/rewards.py).
DeepSeek-R1 has no length reward.
How we differ: Open-R1 compares the responses to all problems of a batch with each other, by characters, and pays a
response whose gold answer is unusable. Here, as in the paper, those to one problem are compared, by tokens.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from stages.rewards.accuracy import Accuracy
from stages.rewards.reward import Reward, Sample


class Length(Reward):
    """From 0.5 for the shortest right response of a group down to -0.5 for the longest."""

    kind: Literal["length"] = "length"
    scope: Literal["whole"] = "whole"

    def score_many(self, samples: Sequence[Sample]) -> list[float | None]:
        lengths: dict[tuple[str, str], list[int]] = defaultdict(list)
        for sample in samples:
            lengths[_problem(sample)].append(sample.num_tokens)
        return [
            None if right is None else _penalty(sample.num_tokens, lengths[_problem(sample)], right == 1.0)
            for sample, right in zip(samples, Accuracy().score_many(samples), strict=True)
        ]


def _problem(sample: Sample) -> tuple[str, str]:
    return sample.problem["id"], sample.problem["prompt"]


def _penalty(length: int, lengths: Sequence[int], is_right: bool) -> float:
    least, most = min(lengths), max(lengths)
    if least == most:
        return 0.0
    value = 0.5 - (length - least) / (most - least)
    return value if is_right else min(0.0, value)
