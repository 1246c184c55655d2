"""Cosine: a right answer is worth more when it is short, a wrong one less when it is long.

Formula, with n tokens, limit L and p = min(1, n / L): end + (start - end) * (1 + cos(pi * p)) / 2, where (start, end)
is (max_value_correct, min_value_correct) for a right answer and (min_value_wrong, max_value_wrong) for any other; None
when nothing can be told of the answer. Range: from the least to the greatest of the four values.
Source: "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373); names and the four values are those of
Open-R1's `cosine` (src/open_r1/configs.py). DeepSeek-R1 has no length reward.
How we differ: Open-R1 counts characters against 1,000, does not stop the cosine at the limit (at twice the length a
response is worth as much as an empty one), and pays 1 when the gold answer is unusable. Here tokens are counted, the
limit is by default the sampler's own, so it follows the scale, and an unusable gold is no reward at all.
"""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from stages.rewards.accuracy import Accuracy
from stages.rewards.reward import Reward, Sample


class Cosine(Reward):
    """Accuracy, bent by the length of the response."""

    kind: Literal["cosine"] = "cosine"
    scope: Literal["whole"] = "whole"
    min_value_wrong: float = 0.0
    """Of a wrong answer without any length."""
    max_value_wrong: float = -0.5
    """Of a wrong answer at the limit."""
    min_value_correct: float = 0.5
    """Of a right answer at the limit."""
    max_value_correct: float = 1.0
    """Of a right answer without any length."""
    max_len: int | None = Field(default=None, gt=0)
    """The limit L in tokens; None = the sampler's limit."""

    def score_many(self, samples: Sequence[Sample]) -> list[float | None]:
        return [
            None if right is None else self._bent(sample, right == 1.0)
            for sample, right in zip(samples, Accuracy().score_many(samples), strict=True)
        ]

    def _bent(self, sample: Sample, is_right: bool) -> float:
        progress = min(1.0, sample.num_tokens / (self.max_len or sample.max_tokens))
        start, end = self.min_value_wrong, self.max_value_wrong
        if is_right:
            start, end = self.max_value_correct, self.min_value_correct
        return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
