"""Tag count: how many of the four tags stand in the response exactly once?

Formula: 0.25 for each of `<think>`, `</think>`, `<answer>` and `</answer>`. Range [0, 1].
Source: Open-R1, `tag_count` (src/open_r1/rewards.py), which credits willccbb's GRPO gist. DeepSeek-R1 has only the
whole format.
How we differ: the line breaks around the tags are not asked for, because our templates write none; a think tag that
the prompt opened counts. Order and content are not looked at: list it beside `format`, never instead of it.
"""

from typing import Literal

from stages.chat import TAGS
from stages.rewards.reward import Reward, Sample


class TagCount(Reward):
    """A quarter for each tag that stands there once."""

    kind: Literal["tag_count"] = "tag_count"
    scope: Literal["whole"] = "whole"

    def score(self, sample: Sample) -> float:
        turn = sample.response.turn
        return sum(turn.count(tag) == 1 for tag in TAGS) / len(TAGS)
