"""Problems that a benchmark holds: found and left out.

Reads texts and rows with a prompt; gives those that stay, and counts (`decontaminated`).

Paper: DeepSeek-R1, supplementary: no training text that shares a 10-gram with a benchmark's question. Others use
8 words (Open-R1) or 13 (GPT-3, which also set aside n-grams of more than 10 training texts as common phrases).
How we differ: such a phrase counts for nothing, and what is left in common must cover a share of what is left of the
shorter of the two texts.
Of DeepScaleR's 975 AIME problems before 2024, 229 share a 10-gram with AIME 2024, such as "where m and n are
relatively prime positive integers find"; 55 still do when phrases are set aside; with `coverage` none is dropped,
while the problems of AIME 2024 themselves, typeset differently, are all found. A text that is the same to the letter
always counts, however short or common its words. `coverage: 0` is the paper's rule.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from pipeline.card import canonical_id
from stages.dedup import words


class Overlap(BaseModel):
    """When a training problem counts as taken from a benchmark."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ngram_sizes: tuple[int, ...] = Field((10,), min_length=1, description="words in a row; 8, 10 and 13 are common")
    max_problems: int = Field(
        10, ge=1, description="an n-gram of more training problems than this is a phrase and counts for nothing"
    )
    coverage: float = Field(
        0.8,
        ge=0,
        le=1,
        description="least share of the n-grams of the shorter text in common, without phrases; 0 = one will do",
    )


class Hits(NamedTuple):
    """What one prompt has in common with the benchmarks: all that is needed to judge it once phrases are known."""

    identical: int | None
    """Number of the benchmark text that is the same to the letter."""
    ngrams: tuple[tuple[int, tuple[int, ...]], ...]
    """For each size of n-gram: how many different ones the prompt has, and the numbers of those in common."""

    def __bool__(self) -> bool:
        return self.identical is not None or any(shared for _, shared in self.ngrams)


class Benchmarks:
    """The texts of the benchmarks and their n-grams; memory grows with them alone, whatever is held against them."""

    def __init__(self, benchmarks: Mapping[str, Sequence[str]], overlap: Overlap) -> None:
        self._overlap = overlap
        self._benchmarks = tuple(benchmarks)
        self._names = [name for name, texts in benchmarks.items() for _ in texts]
        texts = [text for texts in benchmarks.values() for text in texts]
        self._identical = {canonical_id(text): number for number, text in reversed(list(enumerate(texts)))}
        self._indexes = [_Index(texts, size) for size in overlap.ngram_sizes]
        self._kinds = ["identical", *(f"{size}-gram" for size in overlap.ngram_sizes)]

    def hits(self, prompt: str) -> Hits:
        """What the prompt has in common with them."""
        said = words(prompt)
        return Hits(self._identical.get(canonical_id(prompt)), tuple(index.shared(said) for index in self._indexes))

    def held(self, hits: Sequence[Hits]) -> list[tuple[str, str] | None]:
        """For each prompt the benchmark that holds it and why (`identical`, `10-gram`), the surest first; else None.

        Prompts without any hit may be left away: they make no n-gram a phrase.
        """
        phrases = [self._phrases(hits, number) for number in range(len(self._indexes))]
        return [self._holder(one, phrases) for one in hits]

    def no_counts(self) -> dict[str, Counter[str]]:
        """For each benchmark a count of 0 of each reason."""
        return {name: Counter(dict.fromkeys(self._kinds, 0)) for name in self._benchmarks}

    def _phrases(self, hits: Sequence[Hits], number: int) -> set[int]:
        uses = Counter(ngram for one in hits for ngram in one.ngrams[number][1])
        return {ngram for ngram, times in uses.items() if times > self._overlap.max_problems}

    def _holder(self, hits: Hits, phrases: Sequence[set[int]]) -> tuple[str, str] | None:
        if hits.identical is not None:
            return self._names[hits.identical], "identical"
        parts = zip(self._kinds[1:], self._indexes, hits.ngrams, phrases, strict=True)
        for kind, index, (num_ngrams, shared), common in parts:
            found = index.holder(num_ngrams, shared, common, self._overlap.coverage)
            if found is not None:
                return self._names[found], kind
        return None


def decontaminated(
    rows: Sequence[dict[str, str]], benchmarks: Mapping[str, Sequence[str]], overlap: Overlap
) -> tuple[list[dict[str, str]], dict[str, Counter[str]]]:
    """The rows that no benchmark holds, and for each benchmark how many it held: `identical`, `10-gram`, ….

    Args:
        rows: anything with a prompt, best without duplicates, for they would make a phrase of what they repeat.
        benchmarks: name -> texts.
    """
    known = Benchmarks(benchmarks, overlap)
    counts = known.no_counts()
    kept = []
    for row, holder in zip(rows, known.held([known.hits(row["prompt"]) for row in rows]), strict=True):
        if holder is None:
            kept.append(row)
        else:
            name, kind = holder
            counts[name][kind] += 1
    return kept, counts


class _Index:
    """The n-grams of the benchmarks' texts, numbered."""

    def __init__(self, texts: Sequence[str], size: int) -> None:
        self._size = size
        self._numbers: dict[str, int] = {}
        self._owners: dict[int, list[int]] = defaultdict(list)
        self._ngrams_of: list[list[int]] = []
        for owner, text in enumerate(texts):
            found = self._ngrams(words(text))
            self._ngrams_of.append([self._numbers.setdefault(ngram, len(self._numbers)) for ngram in found])
            for number in self._ngrams_of[owner]:
                self._owners[number].append(owner)

    def shared(self, said: Sequence[str]) -> tuple[int, tuple[int, ...]]:
        """How many different n-grams these words make, and the numbers of those that a benchmark has too."""
        ngrams = self._ngrams(said)
        return len(ngrams), tuple(self._numbers[ngram] for ngram in ngrams if ngram in self._numbers)

    def holder(self, num_ngrams: int, shared: Sequence[int], phrases: set[int], coverage: float) -> int | None:
        """The text that has enough n-grams in common with a prompt of so many, phrases set aside in both."""
        own = [ngram for ngram in shared if ngram not in phrases]
        num_own = num_ngrams - len(shared) + len(own)
        counts = Counter(owner for ngram in own for owner in self._owners[ngram])
        for owner, count in counts.most_common():
            theirs = sum(ngram not in phrases for ngram in self._ngrams_of[owner])
            if count >= coverage * min(num_own, theirs):
                return owner
        return None

    def _ngrams(self, said: Sequence[str]) -> set[str]:
        return {" ".join(said[i : i + self._size]) for i in range(len(said) - self._size + 1)}
