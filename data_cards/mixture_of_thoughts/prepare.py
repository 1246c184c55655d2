"""Mixture of Thoughts: a question and a verified trace as a demo.

Reads `messages` (the user's turn, then `<think> … </think>` and the solution); makes `prompt` and `response`.
"""

from collections.abc import Mapping
from typing import Any

from data_cards.traces import demo, from_think_block, turn


def row(raw: Mapping[str, Any], config: str | None) -> dict[str, str]:
    """The demo."""
    return demo(turn(raw["messages"], "user"), *from_think_block(turn(raw["messages"], "assistant")))
