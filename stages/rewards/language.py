"""Language: is the reasoning written in the language of the question?

Formula: words of the problem's language / words, over the reasoning; None if the text holds no word at all
(pure numbers and symbols are of every language). Range [0, 1].
Paper: DeepSeek-R1, section 2.3.2, language consistency reward.
How we differ: a word's language is told by its script (`stages/language.py`); a response without reasoning
gets None.
"""

from typing import Literal

from stages.chat import without_tags
from stages.language import language_share
from stages.rewards.reward import Reward, Sample, Scope


class Language(Reward):
    """The share of the words that are in the problem's language."""

    kind: Literal["language"] = "language"
    scope: Scope = "reasoning"

    def score(self, sample: Sample) -> float | None:
        return language_share(without_tags(self.text(sample) or ""), sample.problem["language"])
