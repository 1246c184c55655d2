r"""OpenR1-Math-220k: the first generation of a problem that is complete and was found right, as a demo.

Reads rows with up to six `generations` and lists that run beside them, each of which may be null; makes `prompt` and
`response`, or for the configs that end in `problems` nothing beside the mapped columns.
"""

from collections.abc import Mapping
from typing import Any

from data_cards.traces import chosen, demo, from_think_block

UNCHECKABLE = frozenset({"proof", "notfound"})


def row(raw: Mapping[str, Any], config: str | None) -> dict[str, str] | str:
    """The demo; the reason, where no generation is complete and right."""
    if (config or "").endswith("problems"):
        return "no answer to check" if raw["answer"].strip().casefold() in UNCHECKABLE else {}
    number = chosen(raw)
    if number is None:
        return "no generation is complete and right"
    return demo(raw["problem"], *from_think_block(raw["generations"][number]))
