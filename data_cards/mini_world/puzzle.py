"""What every puzzle of the mini world can do, and which puzzles are held out."""

import hashlib
import json
from abc import ABC, abstractmethod
from random import Random
from typing import Any, ClassVar, Self

from data_cards.mini_world.voice import Voice

HELD_OUT = 0.2
"""Share of all canonical keys that is kept for evaluation."""


class Puzzle(ABC):
    """One problem, independent of language and wording."""

    domain: ClassVar[str]
    checker: ClassVar[str]
    modes: ClassVar[dict[str, float]]
    """How it is answered in pretraining text: mode -> share of the documents; the shares sum to one."""

    @classmethod
    @abstractmethod
    def sample(cls, rng: Random) -> Self:
        """A random puzzle."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Canonical key: equal for the same problem in another language, wording or order."""

    @property
    def split_key(self) -> str:
        """What decides the split; coarser than `key` where one puzzle's text gives another's answer away."""
        return self.key

    @abstractmethod
    def gold(self, language: str) -> Any:
        """The answer the checker compares with, as a JSON value or as text."""

    @abstractmethod
    def ask(self, language: str, rng: Random) -> str:
        """The question in one of its wordings."""

    @abstractmethod
    def respond(self, mode: str, language: str, voice: Voice, rng: Random) -> str:
        """A response to the question asked in `language`, reasoning in `voice`; begins with a space."""

    def problem(self, language: str, rng: Random) -> dict[str, str]:
        """The puzzle as a row of a problem card."""
        gold = self.gold(language)
        return {
            "id": self.key,
            "prompt": self.ask(language, rng),
            "answer": gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False),
            "checker": self.checker,
            "domain": self.domain,
            "language": language,
        }


def held_out(puzzle: Puzzle) -> bool:
    """Whether the puzzle belongs to the split `eval`; its key alone decides, so for ever and everywhere."""
    digest = hashlib.sha256(puzzle.split_key.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32
