"""The data card of a curated data set: where its rows come from, and what became of all the others."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.card import Card
from stages.dataset_card import benchmarks, cards_of, licence_of, notes, table, write_card
from stages.sampled_card import SAYS as SAYS_OF_RESPONSES

if TYPE_CHECKING:
    from stages.curate import Curate

SAYS = SAYS_OF_RESPONSES | {
    "bad": "a column of it is missing",
    "unknown_pass_rate": "nothing says how often it is solved",
    "too_hard": "solved too seldom",
    "too_easy": "solved too often",
    "figure": "mathematics: it points at a figure, or holds one",
    "several_parts": "mathematics: several questions in one",
    "proof": "mathematics: it asks for a proof",
    "link": "code: an address or an image",
    "too_short": "code: the question is too short",
    "no_tests": "code: no tests that can be run",
    "duplicate": "there already, but for case and spacing",
    "near_duplicate": "there already, in almost the same words",
    "contaminated": "an evaluation set holds it",
    "not_the_best": "good, but another of the same problem is better",
    "too_alike": "good, but much like one that was chosen",
    "not_chosen": "good, but there are enough",
}


def write_curated_card(stage: "Curate", counts: Mapping[str, Any], folder: Path) -> None:
    """Writes `README.md` into the stage's folder; `counts` is what `counts.json` holds."""
    cards = cards_of(stage.sources)
    front = {
        "language": sorted({name.rpartition(", ")[2] for name in counts["kept_by_domain"]}),
        "license": licence_of(stage.sources, cards),
        "tags": ["curated", "reasoning"],
        "configs": [{"config_name": "default", "data_files": "rows/*.parquet"}],
    }
    domains = table(("rows by domain and language", "number"), counts["kept_by_domain"].items())
    held = benchmarks(counts["benchmarks"], stage.overlap, "rows")
    body = _sources(counts, cards) + _rows(counts["rows"]) + domains + held
    write_card(folder, "Curated rows", front, counts["rows"]["kept"], body)


def _sources(counts: Mapping[str, Any], cards: Mapping[str, Card]) -> str:
    rows = [
        (f"`{name}`", cards[name].licence if name in cards else "see its own folder", row["found"], row["kept"])
        for name, row in counts["sources"].items()
    ]
    return "## Sources\n\n" + table(("rows from", "licence", "found", "kept"), rows) + notes(cards)


def _rows(counts: Mapping[str, int]) -> str:
    """The funnel: how many rows are left after each rule that left some out."""
    left, lines = counts["found"], []
    for name, number in counts.items():
        if name not in ("found", "kept") and number:
            left -= number
            lines.append((SAYS[name], number, left))
    return "## Rows\n\nEach is counted once, under the first rule that leaves it out, in this order.\n\n" + table(
        ("what became of it", "rows", "left"), [("found", counts["found"], counts["found"]), *lines]
    )
