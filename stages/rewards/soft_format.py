"""Soft format: a think block and then an answer block, however they are spaced.

Formula: 0.5 if the response begins with a think block and an answer block follows it, else 0; what comes
afterwards does not count. Range {0, 0.5}.
Source: willccbb's GRPO gist, as Unsloth's GSM8K notebook (nb/Llama3.1_(8B)-GRPO.ipynb) has it. DeepSeek-R1's format
reward is `format`.
How we differ: our tag `think` for its `reasoning`; several lines are allowed (there a dot does not match a line break,
so no real reasoning ever earned it); white space before the first tag is; empty blocks earn nothing.
"""

import re
from typing import Literal

from stages.chat import ANSWER, END_ANSWER, END_THINK, THINK, has_content
from stages.rewards.reward import Reward, Sample

_MIDDLE = re.compile(rf"{END_THINK}\s*{ANSWER}")


class SoftFormat(Reward):
    """0.5 for the two blocks in their order."""

    kind: Literal["soft_format"] = "soft_format"
    scope: Literal["whole"] = "whole"

    def score(self, sample: Sample) -> float:
        turn = sample.response.turn.lstrip()
        middle = _MIDDLE.search(turn)
        if not (turn.startswith(THINK) and middle):
            return 0.0
        answer, end, _ = turn[middle.end() :].partition(END_ANSWER)
        return 0.5 * (bool(end) and has_content(turn[len(THINK) : middle.start()], answer))
