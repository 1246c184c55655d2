"""Problems that are there twice, and problems that a benchmark holds: both found and left out.

Reads texts and rows with a prompt; gives those that stay, and counts (`distinct`, `decontaminated`, `Dedup.same`).

Paper: DeepSeek-R1, supplementary: no training text that shares a 10-gram with a benchmark's question. Others use
8 words (Open-R1) or 13 (GPT-3, which also set aside n-grams of more than 10 training texts as common phrases).
How we differ: such a phrase counts for nothing, and what is left must cover a share of the shorter of the two texts.
Of DeepScaleR's 975 AIME problems before 2024, 229 share a 10-gram with AIME 2024, such as "where m and n are
relatively prime positive integers find"; 55 still do when phrases are set aside; with `coverage` none is dropped,
while the problems of AIME 2024 themselves, typeset differently, are all found. A text that is the same to the letter
always counts, however short or common its words. `coverage: 0` is the paper's rule.

Near duplicates must agree in every number and sign and in the gold answer, and in almost all words: "3+4" is not "3+5",
and "how many boys" is not "how many girls". MinHash (datasketch) finds the candidates, so time grows with the number of
texts, and rapidfuzz compares them.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from pipeline.card import canonical_id
from stages.language import HAN

_WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
_SIGN = re.compile(r"\d+|[-+*/^=<>!%×÷]")

_NUM_HASHES, _CANDIDATE_JACCARD = 64, 0.7


def words(text: str) -> list[str]:
    """The words of a text in small letters, each Chinese character by itself; punctuation and LaTeX braces are gone."""
    return _WORD.findall(_plain(text))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


class Dedup(BaseModel):
    """When two texts count as one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exact: bool = Field(True, description="the same but for case and spacing")
    fuzzy: float | None = Field(
        0.95, gt=0, le=1, description="the same numbers and signs, and this similarity of the words; null = off"
    )

    def same(self, one: str, other: str) -> bool:
        """Whether the two texts count as one."""
        return (self.exact and canonical_id(one) == canonical_id(other)) or (
            self.fuzzy is not None and _similar(one, other, self.fuzzy)
        )


def _similar(one: str, other: str, least: float) -> bool:
    from rapidfuzz.distance import Indel

    if _SIGN.findall(_plain(one)) != _SIGN.findall(_plain(other)):
        return False
    return Indel.normalized_similarity(words(one), words(other), score_cutoff=least) >= least


def distinct(rows: Iterable[dict[str, str]], dedup: Dedup) -> tuple[list[dict[str, str]], Counter[str]]:
    """The rows whose prompt was not there before, and how many were a `duplicate` or a `near_duplicate`.

    A near duplicate has the same answer too, where rows have one.
    """
    kept, counts, ids = [], Counter(duplicate=0, near_duplicate=0), set[str]()
    near = NearDuplicates(dedup.fuzzy) if dedup.fuzzy is not None else None
    for row in rows:
        name = canonical_id(row["prompt"])
        if dedup.exact and name in ids:
            counts["duplicate"] += 1
        elif near and near.seen(row["prompt"], row.get("answer", "")):
            counts["near_duplicate"] += 1
        else:
            ids.add(name)
            kept.append(row)
    return kept, counts


class NearDuplicates:
    """The texts so far; about a kilobyte and a quarter of a millisecond for each."""

    def __init__(self, least: float) -> None:
        from datasketch import MinHashLSH

        self._least = least
        self._known: list[tuple[str, str]] = []
        self._index = MinHashLSH(threshold=_CANDIDATE_JACCARD, num_perm=_NUM_HASHES)

    def seen(self, text: str, answer: str) -> bool:
        """Whether a near duplicate of the text was there before; if not, the text is remembered."""
        from datasketch import MinHash

        sketch = MinHash(num_perm=_NUM_HASHES)
        sketch.update_batch([word.encode("utf-8", "replace") for word in set(words(text))])
        candidates = (self._known[i] for i in self._index.query(sketch))
        if any(answer == other and _similar(text, known, self._least) for known, other in candidates):
            return True
        self._index.insert(len(self._known), sketch)
        self._known.append((text, answer))
        return False


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
        description="least share of the n-grams of the shorter text in common; 0 = a single one will do",
    )


def decontaminated(
    rows: Sequence[dict[str, str]], benchmarks: Mapping[str, Sequence[str]], overlap: Overlap
) -> tuple[list[dict[str, str]], dict[str, Counter[str]]]:
    """The rows that no benchmark holds, and for each benchmark how many it held: `identical`, `10-gram`, ….

    Args:
        rows: anything with a prompt, best without duplicates, for they would make a phrase of what they repeat.
        benchmarks: name -> texts.
    """
    names = [name for name, texts in benchmarks.items() for _ in texts]
    texts = [text for texts in benchmarks.values() for text in texts]
    prompts = [row["prompt"] for row in rows]
    indexes = [_Index(texts, size, prompts, overlap) for size in overlap.ngram_sizes]
    identical = {canonical_id(text): number for number, text in reversed(list(enumerate(texts)))}
    counts = {name: Counter(dict.fromkeys(("identical", *(index.name for index in indexes)), 0)) for name in benchmarks}
    kept = []
    for row in rows:
        held = next(_holders(row["prompt"], identical, indexes), None)
        if held is None:
            kept.append(row)
        else:
            number, kind = held
            counts[names[number]][kind] += 1
    return kept, counts


def _holders(prompt: str, identical: Mapping[str, int], indexes: Sequence["_Index"]) -> Iterator[tuple[int, str]]:
    """(number of the benchmark's text, why), the surest first."""
    if (number := identical.get(canonical_id(prompt))) is not None:
        yield number, "identical"
    for index in indexes:
        if (number := index.holder(prompt)) is not None:
            yield number, index.name


class _Index:
    """The n-grams of the benchmarks' texts, less those that are phrases of the training problems."""

    def __init__(self, texts: Sequence[str], size: int, prompts: Iterable[str], overlap: Overlap) -> None:
        self.name = f"{size}-gram"
        self._size, self._coverage = size, overlap.coverage
        self._owners: dict[str, list[int]] = defaultdict(list)
        self._lengths = []
        for number, text in enumerate(texts):
            ngrams = self._ngrams(text)
            self._lengths.append(len(ngrams))
            for ngram in ngrams:
                self._owners[ngram].append(number)
        uses = Counter(ngram for prompt in prompts for ngram in self._ngrams(prompt) if ngram in self._owners)
        for ngram, times in uses.items():
            if times > overlap.max_problems:
                del self._owners[ngram]

    def holder(self, prompt: str) -> int | None:
        """The text that has enough n-grams in common with the prompt."""
        ngrams = self._ngrams(prompt)
        shared = Counter(number for ngram in ngrams for number in self._owners.get(ngram, ()))
        for number, count in shared.most_common():
            if count >= self._coverage * min(len(ngrams), self._lengths[number]):
                return number
        return None

    def _ngrams(self, text: str) -> set[str]:
        found = words(text)
        return {" ".join(found[i : i + self._size]) for i in range(len(found) - self._size + 1)}
