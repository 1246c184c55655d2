"""Problems that are there twice: found and left out.

Reads rows with a prompt; gives those that stay, and counts (`distinct`, `Dedup.same`).

Near duplicates must agree in every number and sign and in the gold answer, and in almost all words: "3+4" is not
"3+5", and "how many boys" is not "how many girls". Only texts with the same numbers, signs and answer are compared
(rapidfuzz); where those are many, MinHash (datasketch) finds the candidates among them, so time grows with the
number of texts.

Signs of no width, marks on letters and Cyrillic or Greek look-alikes hide no word.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.card import canonical_id
from stages.language import HAN, seen

_WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
_MARKS = (*range(9), *range(0x0E, 0x20), *range(0x7F, 0xA0), *range(0x300, 0x370), *range(0xD800, 0xE000))
"""Control characters, marks on letters, halves of a character."""
_SEEN_AS = str.maketrans("авеѕіјкмнорстухһԁԛԝαβεζηικμνορτυχ", "abesijkmhopctyxhdqwabezhikmnoptyx")
"""Cyrillic and Greek letters as the Latin ones that they look like; marks as nothing."""
_SEEN_AS |= dict.fromkeys(_MARKS)
_SIGN = re.compile(r"\d+|[-+*/^=<>!%×÷]")

_NUM_HASHES, _CANDIDATE_JACCARD = 64, 0.7
_MANY = 32
"""Texts with the same numbers, signs and answer from which MinHash is faster than comparing all."""


def words(text: str) -> list[str]:
    """The words of a text in small letters, each Chinese character by itself; punctuation and LaTeX braces are gone."""
    return _WORD.findall(_plain(text))


def _plain(text: str) -> str:
    """In small letters, without what has no width, and look-alikes as the letters that they look like."""
    return unicodedata.normalize("NFKD", seen(text)).casefold().translate(_SEEN_AS)


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
    return _signs(one) == _signs(other) and similar_words(words(one), words(other), least)


def similar_words(one: Sequence[str], other: Sequence[str], least: float) -> bool:
    """Whether two lists of words agree by `least`, in order: 1 = the same, 0 = nothing in common."""
    from rapidfuzz.distance import Indel

    return Indel.normalized_similarity(one, other, score_cutoff=least) >= least


def _signs(text: str) -> list[str]:
    return _SIGN.findall(_plain(text))


def distinct(rows: Iterable[dict[str, str]], dedup: Dedup) -> tuple[list[dict[str, str]], Counter[str]]:
    """The rows whose prompt was not there before, and how many were a `duplicate` or a `near_duplicate`.

    A near duplicate has the same answer too, where rows have one.
    """
    kept, counts, known = [], Counter(duplicate=0, near_duplicate=0), Known(dedup)
    for row in rows:
        if (reason := known.reason_to_drop(row)) is None:
            kept.append(row)
        else:
            counts[reason] += 1
    return kept, counts


class Known:
    """The prompts so far: some 0.6 kB for each, and its text."""

    def __init__(self, dedup: Dedup) -> None:
        self._exact = dedup.exact
        self._ids: set[int] = set()
        self._near = NearDuplicates(dedup.fuzzy) if dedup.fuzzy is not None else None

    def reason_to_drop(self, row: Mapping[str, str]) -> str | None:
        """`duplicate`, `near_duplicate`, or None for a prompt that is new; it is then remembered."""
        name = int(canonical_id(row["prompt"]), 16)
        if self._exact and name in self._ids:
            return "duplicate"
        if self._near and self._near.seen(row["prompt"], row.get("answer") or ""):
            return "near_duplicate"
        self._ids.add(name)
        return None


class NearDuplicates:
    """The texts so far, by their numbers, signs and answer: those alone can be near duplicates of each other."""

    def __init__(self, least: float) -> None:
        self._least = least
        self._groups: dict[bytes, _Group] = {}

    def seen(self, text: str, answer: str) -> bool:
        """Whether a near duplicate of the text was there before; if not, the text is remembered."""
        key = sha256("\0".join([answer, *_signs(text)]).encode("utf-8", "replace")).digest()[:8]
        return self._groups.setdefault(key, _Group()).seen(text, self._least)


class _Group:
    """Texts with the same numbers, signs and answer; few are compared one by one, many by MinHash candidates."""

    __slots__ = ("_index", "_texts")

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._index: Any = None

    def seen(self, text: str, least: float) -> bool:
        if not self._texts:
            self._texts.append(text)
            return False
        said = words(text)
        if self._index is None and len(self._texts) >= _MANY:
            self._index = _sketches(self._texts)
        sketch = None if self._index is None else _sketch(said)
        candidates = self._texts if sketch is None else [self._texts[i] for i in self._index.query(sketch)]
        if any(similar_words(said, words(known), least) for known in candidates):
            return True
        if sketch is not None:
            self._index.insert(len(self._texts), sketch)
        self._texts.append(text)
        return False


def _sketches(texts: Sequence[str]) -> Any:
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=_CANDIDATE_JACCARD, num_perm=_NUM_HASHES)
    for number, text in enumerate(texts):
        index.insert(number, _sketch(words(text)))
    return index


def _sketch(said: Sequence[str]) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=_NUM_HASHES)
    sketch.update_batch([word.encode("utf-8", "replace") for word in set(said)])
    return sketch
