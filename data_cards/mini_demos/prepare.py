"""Demos of the mini world; see data_cards/mini_world/lessons.py."""

from collections.abc import Iterator

from data_cards.mini_world import demos

DEFAULT_SIZE = {"cold_start": 600, "general": 2_000}


def rows(split: str, config: str | None, limit: int | None, seed: int) -> Iterator[dict[str, str]]:
    """Up to `limit` demos of one config; `general` if none is named."""
    name = config or "general"
    return demos(name, limit or DEFAULT_SIZE[name], seed)
