"""Bespoke-Stratos-17k: a conversation in the `begin_of_thought` form as a demo of ours.

Reads `{system, conversations}`; makes `prompt`, `response` and `domain`. The long system prompt, the same in all rows,
is left away: it asks for another form.
"""

from collections.abc import Mapping
from typing import Any

from data_cards.traces import asked, demo, from_thought_block, turn


def row(raw: Mapping[str, Any], config: str | None) -> dict[str, str]:
    """The demo with its domain."""
    question, domain = asked(turn(raw["conversations"], "user"))
    return demo(question, *from_thought_block(turn(raw["conversations"], "assistant"))) | {"domain": domain}
