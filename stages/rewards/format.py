"""Format: does the response keep to one think block and then one answer block?

Formula: 1 if `parse` calls the response well-formed, else 0. Range {0, 1}.
Paper: DeepSeek-R1, section 2.2.2, format rewards.
How we differ: all or nothing, on the strict form of `stages/chat.py`. TRL's think_format_reward and Open-R1's
tag counts also pay for empty or nested blocks, which a model soon finds out.
"""

from typing import Literal

from stages.rewards.reward import Reward, Sample


class Format(Reward):
    """1 for a well-formed response, 0 otherwise."""

    kind: Literal["format"] = "format"
    scope: Literal["whole"] = "whole"

    def score(self, sample: Sample) -> float:
        return float(sample.response.well_formed)
