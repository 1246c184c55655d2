"""How good a chain of thought is to learn from, by LIMO's score.

Reads the reasoning of all chains that are to be compared; gives a number for each (`Quality.scores`): a weighted sum of
its length and of how often it checks itself, explores and connects. Frequencies are by words, and each criterion is a
z-score over the whole pool, so a score means something beside the others of its pool only.

Source: LIMO (arXiv 2502.03387), whose curation code is not published; the weights are those that its appendix is
reported to give: length 30 %, self-checks 20 %, exploration 25 %, connectives 25 %. How we differ: Chinese words count
beside the English ones, and every form of "check" and "verify". A criterion in which all are alike counts for nothing.
"""

import re
from collections.abc import Sequence
from statistics import fmean, pstdev

from pydantic import BaseModel, ConfigDict, Field

from stages.language import count_words

SAYS: dict[str, re.Pattern[str]] = {
    "self_checks": re.compile(
        r"\b(?:double-)?check(?:s|ed|ing)?\b|\bverif(?:y|ies|ied|ying)\b|检查|检验|验证|验算", re.I
    ),
    "exploration": re.compile(r"\b(?:perhaps|might)\b|也许|或许|可能", re.I),
    "connectives": re.compile(r"\b(?:therefore|since)\b|因此|所以|由于|因为", re.I),
}
"""Criterion -> the words that count for it."""


class Quality(BaseModel):
    """The weight of each criterion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    length: float = Field(0.30, ge=0, description="words of the chain")
    self_checks: float = Field(0.20, ge=0, description="check, verify …, by words")
    exploration: float = Field(0.25, ge=0, description="perhaps, might …, by words")
    connectives: float = Field(0.25, ge=0, description="therefore, since …, by words")

    def scores(self, chains: Sequence[str]) -> list[float]:
        """The score of each chain within this pool, in order. No text raises."""
        weights = self.model_dump()
        measured = [measures(chain) for chain in chains]
        scaled = {name: z_scores([one[name] for one in measured]) for name in weights}
        return [sum(weight * scaled[name][i] for name, weight in weights.items()) for i in range(len(chains))]


def measures(chain: str) -> dict[str, float]:
    """Words of the chain, and the share of them that belongs to each criterion."""
    num_words = count_words(chain)
    shares = {name: len(said.findall(chain)) / max(num_words, 1) for name, said in SAYS.items()}
    return {"length": float(num_words), **shares}


def z_scores(values: Sequence[float]) -> list[float]:
    """Each value's distance from the mean in standard deviations; 0 for all where they do not differ."""
    if not values or (spread := pstdev(values)) == 0:
        return [0.0] * len(values)
    mean = fmean(values)
    return [(value - mean) / spread for value in values]
