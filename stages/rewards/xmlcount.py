"""XML count: an eighth for each tag in its place, less for talking on.

Formula: 0.125 for each of `<think>` + line break, line break + `</think>` + line break, line break + `<answer>` + line
break, line break + `</answer>` that stands there exactly once; minus 0.001 for each character after the last
`</answer>`; never below 0. Range [0, 0.5].
Source: willccbb's GRPO gist, as Unsloth's GSM8K notebook (nb/Llama3.1_(8B)-GRPO.ipynb) has it. DeepSeek-R1 has none.
How we differ: our tag `think` for its `reasoning`; the penalty is taken once and stops at 0 (there it is taken twice
and has no end, so a long epilogue outweighs everything else); a line break at the very end is free.
"""

from typing import Literal

from stages.chat import ANSWER, END_ANSWER, END_THINK, THINK
from stages.rewards.reward import Reward, Sample

_PLACED = (f"{THINK}\n", f"\n{END_THINK}\n", f"\n{ANSWER}\n", f"\n{END_ANSWER}")


class XmlCount(Reward):
    """How many tags stand on lines of their own, less what follows the answer."""

    kind: Literal["xmlcount"] = "xmlcount"
    scope: Literal["whole"] = "whole"

    def score(self, sample: Sample) -> float:
        turn = sample.response.turn.removesuffix("\n")
        placed = 0.125 * sum(turn.count(tag) == 1 for tag in _PLACED)
        _, end, epilogue = turn.rpartition(END_ANSWER)
        return max(0.0, placed - 0.001 * len(epilogue if end else ""))
