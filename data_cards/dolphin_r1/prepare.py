"""Dolphin-R1: three configs as demos of ours.

Reads `messages` with `reasoning` and `answer` beside them, or (`nonreasoning`) `messages` with the reply inside; makes
`prompt` and `response`. No other column is asked for, because their names are not confirmed.
"""

from collections.abc import Mapping
from typing import Any

from data_cards.traces import demo, plain_demo, turn


def row(raw: Mapping[str, Any], config: str | None) -> dict[str, str]:
    """The demo. The system's turn is part of the prompt: in some rows the whole instruction stands there."""
    said = turn(raw["messages"], "system"), turn(raw["messages"], "user", "human")
    prompt = "\n\n".join(part for part in said if part)
    if config == "nonreasoning":
        return plain_demo(prompt, turn(raw["messages"], "assistant", "gpt"))
    return demo(prompt, raw["reasoning"].strip(), raw["answer"].strip())
