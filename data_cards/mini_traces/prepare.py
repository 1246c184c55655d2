"""Verified traces of the mini world; see data_cards/mini_world/lessons.py."""

from collections.abc import Iterator

from data_cards.mini_world import demos

DEFAULT_SIZE = 2_000


def rows(split: str, config: str | None, limit: int | None, seed: int) -> Iterator[dict[str, str]]:
    """The demos that are left of `limit` problems."""
    return demos("traces", limit or DEFAULT_SIZE, seed)
