r"""OpenR1-Math-220k: the first generation of a problem that is complete and was found right, as a demo.

Reads rows with up to six `generations` and lists that run beside them, each of which may be null; makes `prompt` and
`response`, or for the configs that end in `problems` nothing beside the mapped columns.
"""

from collections.abc import Mapping
from typing import Any

from data_cards.traces import demo, from_think_block

UNCHECKABLE = frozenset({"proof", "notfound"})


def row(raw: Mapping[str, Any], config: str | None) -> dict[str, str] | str:
    """The demo; the reason, where no generation is complete and right."""
    if (config or "").endswith("problems"):
        return "no answer to check" if raw["answer"].strip().casefold() in UNCHECKABLE else {}
    number = _chosen(raw)
    if number is None:
        return "no generation is complete and right"
    return demo(raw["problem"], *from_think_block(raw["generations"][number]))


def _chosen(raw: Mapping[str, Any]) -> int | None:
    """math-verify's verdict counts first, then the Llama judge's, which is there for about one row in eight."""
    complete = raw["is_reasoning_complete"] or [True] * len(raw["generations"])
    for verdicts in (raw["correctness_math_verify"], raw["correctness_llama"]):
        for number, (is_right, is_whole) in enumerate(zip(verdicts or (), complete, strict=False)):
            if is_right and is_whole:
                return number
    return None
