"""The card of a data set that a stage made: a `README.md` that is a Hugging Face dataset card.

What the cards of sampled demos (`sampled_card.py`) and of curated rows (`curated_card.py`) say alike stands here: where
the rows come from, under which licence, and which of them an evaluation set holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.card import Card, load_card, parse_card_ref
from pipeline.markdown import inline
from pipeline.refs import DatasetRef
from stages.decontamination import Overlap

SIZES = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6}
"""The hub's words for sizes, each with the first number that is too large for it."""


def write_card(folder: Path, title: str, front: Mapping[str, Any], num_rows: int, body: str) -> None:
    """Writes `README.md`: `front` (and what every data set of ours has) as front matter, then title and body."""
    block = {
        "pretty_name": title,
        **front,
        "task_categories": ["text-generation"],
        "size_categories": [next((name for name, top in SIZES.items() if num_rows < top), "n>1M")],
    }
    header = yaml.safe_dump(block, sort_keys=False, allow_unicode=True)
    (folder / "README.md").write_text(f"---\n{header}---\n# {title}\n\n{body}", encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, followed by an empty line; cells may hold Markdown, and nothing else (no HTML, no line end)."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(inline, line))} |\n" for line in lines) + "\n"


def cards_of(refs: Sequence[DatasetRef]) -> dict[str, Card]:
    """The references that are cards; what is said of another one stands in its own folder."""
    return {str(ref): load_card(parse_card_ref(ref.target).name) for ref in refs if ref.scheme == "card"}


def licence_of(refs: Sequence[DatasetRef], cards: Mapping[str, Card]) -> str:
    """The licence word of the front matter: that of all sources where they are known to have one and the same."""
    licences = {cards[str(ref)].licence if str(ref) in cards else "other" for ref in refs}
    return licences.pop() if len(licences) == 1 else "other"


def notes(cards: Mapping[str, Card]) -> str:
    """What a person should read before using or publishing rows of these cards."""
    return "".join(f"**Note:** {inline(warning)}.\n\n" for card in cards.values() for warning in card.warnings)


def benchmarks(counts: Mapping[str, Mapping[str, int]], overlap: Overlap, what: str) -> str:
    """The section on evaluation sets; `counts`: name of each -> kind of overlap -> how many of `what` were left out."""
    if not counts:
        return "## Benchmarks\n\nNo evaluation set was named, so nothing was left out for being in one.\n"
    rows = [(f"`{name}`", kind, number) for name, kinds in counts.items() for kind, number in kinds.items()]
    return (
        f"## Benchmarks\n\n{what.capitalize()} left out because an evaluation set holds them: to the letter, or "
        f"{overlap.coverage:.0%} of the n-grams of the shorter text. An n-gram of more than "
        f"{overlap.max_problems} problems is a phrase and counts for nothing.\n\n"
        + table(("evaluation set", "in common", f"{what} left out"), rows)
    )
