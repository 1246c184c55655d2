"""Reasoning steps: does the response say where its steps begin?

Formula: min(1, different step markers / 3). Range [0, 1].
Source: Open-R1, `reasoning_steps` (src/open_r1/rewards.py): "Step 1:", "1.", a bullet, "First," and the like; three of
them are full marks. DeepSeek-R1 has no such reward.
How we differ: a marker said twice is one marker, or "First, First, First," would earn all of it; a number or bullet
counts at the beginning of any line; Chinese markers count.
"""

import re
from typing import Literal

from pydantic import Field

from stages.rewards.reward import Reward, Sample

_MARKER = re.compile(
    r"""\bStep\ \d{1,4}: | ^\d{1,4}\. | ^[-*]\ .+ | \b(?:First|Second|Third|Next|Then|Finally),
    | 首先 | 其次 | 然后 | 最后 | 第[一二三四五六七八九十]步""",
    re.VERBOSE | re.MULTILINE,
)


class ReasoningSteps(Reward):
    """The share of the wanted number of steps that are marked as such."""

    kind: Literal["reasoning_steps"] = "reasoning_steps"
    num_steps: int = Field(default=3, ge=1)
    """So many markers earn all of it."""

    def score(self, sample: Sample) -> float:
        markers = set(_MARKER.findall(self.text(sample) or ""))
        return min(1.0, len(markers) / self.num_steps)
