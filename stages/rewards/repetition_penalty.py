"""Repetition penalty: what it costs to say the same thing again and again.

Formula: (1 - unique n-grams / n-grams) * max_penalty; 0 for a text shorter than one n-gram. Range
[max_penalty, 0].
Source: "Demystifying Long Chain-of-Thought Reasoning" (arXiv 2502.03373), appendix C.2; the names are TRL's
and Open-R1's. DeepSeek-R1 only filters repetition out of its data.
How we differ: TRL counts tokens and Open-R1 needs a Chinese word splitter; here n-grams are over words
between spaces and, in Chinese, over characters, whichever the text holds.
"""

from typing import Literal

from pydantic import Field

from stages.chat import without_tags
from stages.language import units
from stages.rewards.reward import Reward, Sample


class RepetitionPenalty(Reward):
    """0 for a text without a repeated n-gram, towards `max_penalty` for a loop."""

    kind: Literal["repetition_penalty"] = "repetition_penalty"
    ngram_size: int = Field(default=3, ge=1)
    """Words (Chinese: characters) in an n-gram."""
    max_penalty: float = Field(default=-1.0, le=0.0)
    """The penalty of a text that only repeats itself."""

    def score(self, sample: Sample) -> float:
        return self.max_penalty * repeated_share(self.text(sample) or "", self.ngram_size)


def repeated_share(text: str, ngram_size: int) -> float:
    """The share of the text's n-grams that stood in it before, in [0, 1]; tags and case do not count."""
    pieces = units(without_tags(text).lower())
    ngrams = list(zip(*(pieces[i:] for i in range(ngram_size)), strict=False))
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
