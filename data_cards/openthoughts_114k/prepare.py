"""OpenThoughts-114k: its two configs as demos of ours.

Reads `{system, conversations}` (config `default`) or the parts in columns of their own (`metadata`); makes `prompt`,
`response` and `domain`. The long system prompt, the same in all rows, is left away: it asks for another form.
"""

from collections.abc import Mapping
from typing import Any

from data_cards.traces import asked, demo, from_thought_block, turn

DOMAINS = {"puzzle": "logic", "biology": "science", "chemistry": "science", "physics": "science"}


def row(raw: Mapping[str, Any], config: str | None) -> dict[str, str]:
    """The demo with its domain in our words."""
    if config == "metadata":
        domain = (raw["domain"] or "general").casefold()
        parts = raw["deepseek_reasoning"].strip(), raw["deepseek_solution"].strip()
        return demo(raw["problem"], *parts) | {"domain": DOMAINS.get(domain, domain)}
    question, domain = asked(turn(raw["conversations"], "user"))
    return demo(question, *from_thought_block(turn(raw["conversations"], "assistant"))) | {"domain": domain}
