"""Soft overlong punishment: a penalty for responses close to, or over, the length limit.

Formula, with n tokens, limit L and cache C:  0 if n <= L - C;  (L - C - n) / C if L - C < n <= L;  -1 if n >
L.
Range [-1, 0].
Source: DAPO (arXiv 2503.14476), equation 13, "soft overlong punishment"; the names are TRL's and Open-R1's.
DeepSeek-R1 has no length reward.
How we differ: the limit is by default the sampler's own, so it follows the scale; the cache may be a share of
it.
"""

from typing import Literal

from pydantic import Field

from stages.rewards.reward import Reward, Sample


class SoftOverlongPunishment(Reward):
    """0 for a response with room to spare, down to -1 at the limit."""

    kind: Literal["soft_overlong_punishment"] = "soft_overlong_punishment"
    scope: Literal["whole"] = "whole"
    max_completion_len: int | None = Field(default=None, gt=0)
    """The limit L in tokens; None = the sampler's limit."""
    soft_punish_cache: int | float = Field(default=0.25, ge=0)
    """The soft zone C before the limit: in tokens, or below 1 as a share of the limit."""

    def score(self, sample: Sample) -> float:
        limit = self.max_completion_len or sample.max_tokens
        cache = self.soft_punish_cache * (limit if self.soft_punish_cache < 1 else 1)
        if sample.num_tokens <= limit - cache:
            return 0.0
        if sample.num_tokens > limit:
            return -1.0
        return (limit - cache - sample.num_tokens) / cache
