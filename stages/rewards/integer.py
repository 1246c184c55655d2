"""Int: is the answer a whole number and nothing else?

Formula: 0.5 if it is, else 0. Range {0, 0.5}.
Source: willccbb's GRPO gist, as Unsloth's GSM8K notebook (nb/Llama3.1_(8B)-GRPO.ipynb) has it: every answer of GSM8K is
a whole number. DeepSeek-R1 has no such reward.
How we differ: a sign and thousands commas are allowed; only the digits 0 to 9 are digits (Python also calls "²" one).
"""

import re
from typing import Literal

from stages.rewards.reward import Reward, Sample

_WHOLE_NUMBER = re.compile(r"[+-]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)")


class Int(Reward):
    """0.5 for a whole number."""

    kind: Literal["int"] = "int"
    scope: Literal["answer"] = "answer"

    def score(self, sample: Sample) -> float:
        return 0.5 * bool(_WHOLE_NUMBER.fullmatch((sample.response.answer or "").strip()))
