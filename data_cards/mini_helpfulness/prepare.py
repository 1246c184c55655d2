"""Problems of the domain `helpfulness` of the mini world; see data_cards/mini_world."""

from collections.abc import Iterator

from data_cards.mini_world import problems

DEFAULT_SIZE = {"train": 20_000, "eval": 1_000}


def rows(split: str, config: str | None, limit: int | None, seed: int) -> Iterator[dict[str, str]]:
    """Up to `limit` different problems of one split."""
    return problems("helpfulness", split, limit or DEFAULT_SIZE[split], seed)
