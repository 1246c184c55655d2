"""R1-Distill-SFT: the reannotated reply as a demo.

Reads `reannotated_assistant_content` (`<think> … </think>` and the solution) with `problem` (v0) or the user's turn of
`reannotated_messages` (v1, which has no `problem`); makes `prompt` and `response`.
"""

from collections.abc import Mapping
from typing import Any

from data_cards.traces import demo, from_think_block, turn


def row(raw: Mapping[str, Any], config: str | None) -> dict[str, str]:
    """The demo."""
    question = turn(raw["reannotated_messages"], "user") if config == "v1" else raw["problem"]
    return demo(question, *from_think_block(raw["reannotated_assistant_content"]))
