"""Strict format: both blocks, each tag on a line of its own, and nothing else.

Formula: 0.5 for `<think>`, the reasoning, `</think>`, `<answer>`, the answer, `</answer>`, with exactly one line break
between each two, else 0. Range {0, 0.5}.
Source: willccbb's GRPO gist, as Unsloth's GSM8K notebook (nb/Llama3.1_(8B)-GRPO.ipynb) has it. DeepSeek-R1's format
reward is `format`.
How we differ: our tag `think` for its `reasoning`; several lines of reasoning are allowed (there a dot does not match
a line break, so no real reasoning ever earned it); a block twice or an empty one earns nothing; the last line break may
be missing.
"""

from typing import Literal

from stages.chat import ANSWER, END_ANSWER, END_THINK, TAGS, THINK, has_content
from stages.rewards.reward import Reward, Sample


class StrictFormat(Reward):
    """0.5 for the exact form."""

    kind: Literal["strict_format"] = "strict_format"
    scope: Literal["whole"] = "whole"

    def score(self, sample: Sample) -> float:
        turn = sample.response.turn.removesuffix("\n")
        reasoning, middle, answer = turn.partition(f"\n{END_THINK}\n{ANSWER}\n")
        is_framed = reasoning.startswith(f"{THINK}\n") and answer.endswith(f"\n{END_ANSWER}")
        is_once = bool(middle) and all(turn.count(tag) == 1 for tag in TAGS)
        return 0.5 * (is_framed and is_once and has_content(reasoning[len(THINK) :], answer[: -len(END_ANSWER)]))
