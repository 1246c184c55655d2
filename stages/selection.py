"""Choosing among rows that are all good: the best of each problem, no two problems alike, a share for each domain.

Reads rows in memory (demos, or problems); gives those that are chosen, the best first, and how many were left for what
(`Selection.chosen`). Not a stage itself; `Curate` is.

Source: LIMO (arXiv 2502.03387) takes its few hundred chains by quality and diversity; OpenThoughts mixes domains.
How we differ: "diverse" there is a judgement, here no two problems whose words agree by `most_alike`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pipeline.card import Row
from pipeline.errors import DataError
from stages.chain_quality import Quality
from stages.chat import parse, without_tags
from stages.dedup import similar_words, words
from stages.mix import amounts

REASONS = ("not_the_best", "too_alike", "not_chosen")


class Selection(BaseModel):
    """Which rows to choose; null switches a rule off."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quality: Quality | None = Field(
        None, description="put the best chains first, by these weights; null = as they come"
    )
    keep: int | None = Field(None, ge=1, description="at most so many of each problem, the first")
    most_alike: float | None = Field(
        None, gt=0, le=1, description="no problem whose words agree by this with those of one chosen before"
    )
    mix: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, min_length=1, description="the share of each domain, exactly; others are left out"
    )
    num_chosen: int | None = Field(None, ge=1, description="at most so many rows in all")

    def chosen(self, rows: Sequence[Row]) -> tuple[list[Row], Counter[str]]:
        """The chosen rows, and how many were not, by reason. Raises DataError where a domain of the mix has none."""
        dropped = Counter(dict.fromkeys(REASONS, 0))
        ranked = self._ranked(rows)
        good = self._varied(_first_of_each(ranked, self.keep, dropped), dropped)
        kept = list(islice(good, self.num_chosen)) if self.mix is None else self._mixed(list(good), self.mix)
        dropped["not_chosen"] = len(rows) - len(kept) - dropped.total()
        return kept, dropped

    def _ranked(self, rows: Sequence[Row]) -> list[Row]:
        """The best first, each with its `quality`; ties in the order in which they came."""
        if self.quality is None:
            return list(rows)
        scores = self.quality.scores([_chain(row) for row in rows])
        ranked = sorted(zip(scores, rows, strict=True), key=lambda pair: -pair[0])
        return [row | {"quality": f"{score:.4f}"} for score, row in ranked]

    def _varied(self, rows: Iterable[Row], dropped: Counter[str]) -> Iterator[Row]:
        """The rows without those about a problem much like an earlier one; several of one problem stay together."""
        taken: dict[str, list[str]] = {}
        refused: set[str] = set()
        for row in rows:
            prompt, said = row["prompt"], words(row["prompt"])
            if self.most_alike is not None and prompt not in taken:
                if prompt in refused or any(similar_words(said, other, self.most_alike) for other in taken.values()):
                    refused.add(prompt)
                    dropped["too_alike"] += 1
                    continue
                taken[prompt] = said
            yield row

    def _mixed(self, rows: Sequence[Row], mix: Mapping[str, float]) -> list[Row]:
        """As many rows as have the shares exactly, the first of each domain, in order."""
        by_domain = Counter(row["domain"] for row in rows)
        if missing := [domain for domain in mix if not by_domain[domain]]:
            found = ", ".join(f"{domain} {number}" for domain, number in by_domain.items())
            raise DataError(
                f"mix: no row of the domain {', '.join(missing)} is left (there is: {found or 'nothing'})",
                hint="leave it out of `mix`, or loosen what comes before",
            )
        most = amounts([by_domain[domain] for domain in mix], list(mix.values()), self.num_chosen)
        left = dict(zip(mix, most, strict=True))
        kept = []
        for row in rows:
            if left.get(row["domain"], 0):
                left[row["domain"]] -= 1
                kept.append(row)
        return kept


def _first_of_each(rows: Iterable[Row], most: int | None, dropped: Counter[str]) -> Iterator[Row]:
    """At most `most` rows of each prompt."""
    seen: dict[str, int] = defaultdict(int)
    for row in rows:
        seen[row["prompt"]] += 1
        if most is not None and seen[row["prompt"]] > most:
            dropped["not_the_best"] += 1
        else:
            yield row


def _chain(row: Row) -> str:
    """The reasoning of a demo; all that it says where there are no tags."""
    return parse(row["response"]).reasoning or without_tags(row["response"])
