"""What `make cards` prints: a line for each data card, by the shape of its rows, then what is wrong or to be known."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.card import Card, list_cards, load_card
from pipeline.errors import CardError, DataError
from pipeline.sources import data_folder

HEADINGS = {
    "problem": "problems: prompts with checkable answers, for RL, rejection sampling and evaluation",
    "demo": "demos: prompts with responses, for SFT",
    "preference": "preferences: prompts with a better and a worse response, for reward models",
    "text": "text: for the mini base",
    "": "not readable: see below",
}
COLUMNS_SHOWN = ("card", "splits", "rows", "licence", "source", "configs")
WRAPPED = {"splits": 10, "configs": 20}
"""Columns that may take several lines, and their width. All columns together fit into 100 characters."""


def cards_table() -> Group:
    """What `make cards` prints: a table for each shape, then the warnings and faults of all cards, one a line."""
    cards = [_summary(name) for name in list_cards()]
    shapes = {shape: [card for card in cards if card["shape"] == shape] for shape in HEADINGS}
    tables = [_table(HEADINGS[shape], of_shape, cards) for shape, of_shape in shapes.items() if of_shape]
    return Group(*tables, *(Text(f"note: {note}", "yellow") for card in cards for note in card["notes"]))


def _table(heading: str, shown: list[dict[str, Any]], cards: list[dict[str, Any]]) -> Table:
    """One table; its columns are as wide as all `cards` need, so that they stand below each other."""
    table = Table(title=Text(heading, "bold"), title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in COLUMNS_SHOWN:
        width = WRAPPED.get(column) or max(len(card[column]) for card in cards)
        table.add_column(column, overflow="fold", no_wrap=column not in WRAPPED, width=width)
    for card in shown:
        table.add_row(*(card[column] for column in COLUMNS_SHOWN))
    table.add_row()
    return table


def _summary(name: str) -> dict[str, Any]:
    summary: dict[str, Any] = dict.fromkeys((*COLUMNS_SHOWN, "shape"), "") | {"card": name}
    try:
        card = load_card(name)
        return summary | {
            "shape": card.block.rows,
            "splits": " ".join(card.splits),
            "rows": ", ".join(card.front.get("size_categories") or ()).replace("<n<", "-").replace("n<", "<"),
            "licence": card.licence,
            "source": _source(card),
            "configs": ", ".join(card.configs),
            "notes": card.warnings,
        }
    except (CardError, DataError) as error:
        return summary | {"notes": (error.message,)}


def _source(card: Card) -> str:
    """Where the rows come from on this machine, and the beginning of the revision."""
    if card.block.generator:
        return "made here"
    if card.revision.startswith("files-"):
        return f"files {card.revision.removeprefix('files-')[:8]}"
    if data_folder() and card.block.mirror:
        return "files missing"
    return f"hub {card.revision[:8]}" if card.block.hub and card.block.hub.revision else "set R1_DATA"
