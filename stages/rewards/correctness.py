"""Correctness: is the answer, letter by letter, the gold answer?

Formula: 2 if it is, else 0; None if there is no gold answer. Range {0, 2}.
Source: willccbb's GRPO gist, as Unsloth's GSM8K notebook (nb/Llama3.1_(8B)-GRPO.ipynb) has it. DeepSeek-R1 judges by
value: that is `accuracy`, which a new recipe should use.
How we differ: thousands commas and a dollar sign do not count; there "1,000" is not 1000.
"""

from typing import Literal

from stages.rewards.reward import Reward, Sample


class Correctness(Reward):
    """2 for the very text of the gold answer."""

    kind: Literal["correctness"] = "correctness"
    scope: Literal["answer"] = "answer"

    def score(self, sample: Sample) -> float | None:
        gold = _bare(sample.problem["answer"])
        return 2.0 * (_bare(sample.response.answer or "") == gold) if gold else None


def _bare(text: str) -> str:
    return text.strip().removeprefix("$").replace(",", "")
