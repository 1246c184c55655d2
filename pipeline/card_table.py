"""The table of `make cards`: a line for each data card, then what is wrong or to be known."""

from rich.table import Table
from rich.text import Text

from pipeline.card import Card, list_cards, load_card
from pipeline.errors import CardError, DataError
from pipeline.sources import data_folder

COLUMNS_SHOWN = ("name", "rows", "splits", "configs", "licence", "size", "source", "revision")


def cards_table() -> Table:
    """What `make cards` prints: a line per card, then the warnings and faults of all of them."""
    cards = [_summary(name) for name in list_cards()]
    notes = Text("\n".join(card["note"] for card in cards if card["note"]), "yellow")
    table = Table(box=None, pad_edge=False, caption=notes, caption_justify="left")
    for column in COLUMNS_SHOWN:
        wraps = column in ("splits", "configs", "source")
        table.add_column(column, overflow="fold", no_wrap=not wraps, min_width=10 if wraps else None)
    for card in cards:
        table.add_row(*(card[column] for column in COLUMNS_SHOWN))
    return table


def _summary(name: str) -> dict[str, str]:
    summary = dict.fromkeys((*COLUMNS_SHOWN, "note"), "") | {"name": name}
    try:
        card = load_card(name)
        summary |= {
            "rows": card.block.rows,
            "configs": "\n".join(card.configs),
            "licence": card.licence,
            "splits": " ".join(card.splits),
            "source": _source(card),
            "size": ", ".join(card.front.get("size_categories") or ()).replace("<n<", "-"),
            "note": " ".join(card.warnings),
        }
        return summary | {"revision": card.revision[:10]}
    except (CardError, DataError) as error:
        return summary | {"note": error.message}


def _source(card: Card) -> str:
    if card.block.generator:
        return "made here"
    if card.block.mirror and (data_folder() or not card.block.hub):
        return "mirror"
    assert card.block.hub, "a card has a source"
    return f"hub: {card.block.hub.id}"
