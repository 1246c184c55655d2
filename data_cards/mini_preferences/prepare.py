"""Preferences of the mini world; see data_cards/mini_world/lessons.py."""

from collections.abc import Iterator

from data_cards.mini_world import preferences

DEFAULT_SIZE = {"train": 800, "eval": 200}


def rows(split: str, config: str | None, limit: int | None, seed: int) -> Iterator[dict[str, str]]:
    """Up to `limit` pairs of one config; `helpful` if none is named."""
    return preferences(config or "helpful", split, limit or DEFAULT_SIZE[split], seed)
