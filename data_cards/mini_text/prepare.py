"""Pretraining text of the mini world; see data_cards/mini_world."""

from collections.abc import Iterator

from data_cards.mini_world import documents

DEFAULT_SIZE = 600_000


def rows(split: str, config: str | None, limit: int | None, seed: int) -> Iterator[dict[str, str]]:
    """`limit` documents of the only split, `train`."""
    return ({"text": text} for text in documents(limit or DEFAULT_SIZE, seed))
