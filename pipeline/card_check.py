"""`make card-check NAME=x [CONFIG=y] [FILE=path]`: is a data set what its card says? Tried on real rows.

Reads up to 10,000 rows of one split, from FILE, from the mirror or from the hub; makes a table with a line for each
question: the columns, what is bad or left out, whether golds can be judged, lengths, duplicates, and whether an
evaluation card holds some of the problems. Raises DataError at the end if anything is wrong; what is only worth a look
is marked so.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from pipeline.bad_rows import Tally
from pipeline.card import Card, Row, list_cards, load_card
from pipeline.errors import DataError, PipelineError, printable
from pipeline.sources import RawRow, hub_answers

NUM_ROWS = 10_000
NUM_GOLDS = 500
GOOD, LOOK, WRONG = "good", "look", "wrong"
STYLE = {GOOD: "green", LOOK: "yellow", WRONG: "red"}
TYPES: dict[str, type | tuple[type, ...]] = {"string": str, "int64": int, "float64": (int, float), "bool": bool}


class Line(NamedTuple):
    """One answer of the table."""

    question: str
    answer: str
    verdict: str


def check_card(name: str, config: str | None = None, split: str | None = None, file: Path | None = None) -> list[Line]:
    """The lines of the table. Raises as `Card.rows` does when the rows cannot be read at all."""
    card = load_card(name)
    split = split or card.splits[0]
    card.check(split, config)
    if file:
        card = card.reading(file)
    if error := card.lacks(split, config):
        raise error
    return list(_lines(card, split, config))


def check_table(title: str, lines: Sequence[Line]) -> Table:
    """The lines as a person reads them."""
    table = Table("question", "answer", "", title=title, title_justify="left", box=None, pad_edge=False)
    for line in lines:
        table.add_row(printable(line.question), printable(line.answer), Text(line.verdict, STYLE[line.verdict]))
    return table


def require_good(name: str, lines: Sequence[Line]) -> None:
    """A DataError that names what is wrong, if anything is."""
    if wrong := [line.question for line in lines if line.verdict == WRONG]:
        hint = f"mend data_cards/{name}/README.md or the file; the table says what was found"
        raise DataError(f"card {name}: wrong: {', '.join(wrong)}", hint)


def _lines(card: Card, split: str, config: str | None) -> Iterator[Line]:
    tally = card.tally(split, config)
    yield Line("source", f"{card.revision}, split '{split}'", GOOD)
    yield Line("licence", "; ".join((card.licence, *card.warnings)), LOOK if card.warnings else GOOD)
    if not card.generates(config):
        yield from _columns(card, config, list(itertools.islice(card.raw(split, config, tally), NUM_ROWS)))
    tally = card.tally(split, config)
    try:
        rows = list(itertools.islice(card.stream(split, config, NUM_ROWS, tally=tally), NUM_ROWS))
    except DataError as error:
        yield _rows_line(tally)
        yield Line("stops a run", f"{error.message}; {error.hint}", WRONG)
        return
    yield _rows_line(tally)
    yield from (Line("bad row", shown, LOOK) for shown in tally.shown)
    yield from _content(card, rows)


def _rows_line(tally: Tally) -> Line:
    told = [f"{reason} {number}" for reason, number in (tally.bad + tally.left_out).most_common()]
    answer = f"{tally.num_kept} of {tally.num_found} rows are used" + (f" ({', '.join(told)})" if told else "")
    return Line("rows", answer, LOOK if tally.bad else GOOD)


def _content(card: Card, rows: Sequence[Row]) -> Iterator[Line]:
    for column in [name for name in ("prompt", "response", "chosen", "rejected", "text") if name in rows[0]]:
        yield Line(f"length of {column}", _lengths([len(row[column]) for row in rows]), GOOD)
    if "checker" in rows[0]:
        yield from _golds(rows)
    if "response" in rows[0]:
        yield _responses(rows)
    if "prompt" in rows[0]:
        yield _duplicates(rows)
        yield from _overlaps(card, rows)


def _columns(card: Card, config: str | None, rows: Sequence[RawRow]) -> Iterator[Line]:
    """What the card's `dataset_info` says of the source's columns, against what is there."""
    stated = _features(card, config)
    if not stated:
        yield Line("columns", "the card states none (`dataset_info`)", LOOK)
        return
    lacking = [name for name in stated if not any(name in row for row in rows)]
    more = sorted({name for row in rows for name in row} - stated.keys())
    other = [
        f"{name} is {type(value).__name__}, not {kind}"
        for name, kind in stated.items()
        if (value := next((row[name] for row in rows if row.get(name) is not None), None)) is not None
        and not isinstance(value, TYPES.get(kind, object))
    ]
    found = [f"lacks {', '.join(lacking)}"] * bool(lacking) + other + [f"has more: {', '.join(more)}"] * bool(more)
    is_wrong = other or set(lacking) & set(card.block.columns.values())  # one that no row needs may be missing
    verdict = WRONG if is_wrong else LOOK if lacking or more else GOOD
    yield Line("columns", "; ".join(found) or ", ".join(stated), verdict)


def _features(card: Card, config: str | None) -> dict[str, str]:
    """Column -> its dtype, as the front matter states it for a config of ours."""
    infos = card.front.get("dataset_info") or []
    own = card.block.configs.get(config or "")
    names = [own.hub_config if own else None, config, card.block.hub.config if card.block.hub else None]
    by_name = {info.get("config_name"): info["features"] for info in infos}
    features = next((by_name[name] for name in names if name in by_name), infos[0]["features"] if infos else [])
    return {feature["name"]: feature.get("dtype", "list") for feature in features}


def _lengths(lengths: Sequence[int]) -> str:
    ordered = sorted(lengths)
    late = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    return f"median {statistics.median(ordered):,.0f} characters, 95 % to {late:,}, longest {ordered[-1]:,}"


def _golds(rows: Sequence[Row]) -> Iterator[Line]:
    """Whether golds can be judged by: no answer at all must be found wrong, and not the gold to be of no use."""
    from stages.rewards.checkers import CHECKERS, Verdict, check_many

    unknown = {row["checker"] for row in rows} - CHECKERS.keys()
    if unknown:
        yield Line("checker", f"there is none called {', '.join(sorted(unknown))}", WRONG)
        return
    tried = rows[:NUM_GOLDS]
    verdicts = check_many([("", row) for row in tried])
    unusable = [
        row["answer"]
        for row, verdict in zip(tried, verdicts, strict=True)
        if verdict in (Verdict.gold_unusable, Verdict.cannot_tell)
    ]
    share = 1 - len(unusable) / len(tried)
    first = f"; not, for instance: {' | '.join(gold[:60] for gold in unusable[:3])}" if unusable else ""
    yield Line("golds", f"{share:.1%} of {len(tried)} can be judged{first}", GOOD if share > 0.9 else LOOK)


def _responses(rows: Sequence[Row]) -> Line:
    from stages.chat import parse

    parsed = [parse(row["response"]) for row in rows[:NUM_GOLDS]]
    answered = sum(response.answer is not None for response in parsed)
    well_formed = sum(response.well_formed for response in parsed)
    answer = f"of {len(parsed)}: {answered} with an answer, {well_formed} well-formed with reasoning"
    return Line("responses", answer, GOOD if answered == len(parsed) else LOOK)


def _duplicates(rows: Sequence[Row]) -> Line:
    from stages.dedup import Dedup, distinct

    kept, counts = distinct(rows, Dedup())
    told = ", ".join(f"{name} {number}" for name, number in counts.items() if number)
    return Line("duplicates", told or f"none among {len(rows)}", LOOK if len(kept) < len(rows) else GOOD)


def _overlaps(card: Card, rows: Sequence[Row]) -> Iterator[Line]:
    """A line for each evaluation card whose rows are at hand, and one for those that are not."""
    from stages.decontamination import Overlap, decontaminated

    hub_is_there = hub_answers()
    absent = []
    for other, split in evaluation_splits():
        if other.name == card.name:
            continue
        try:
            texts = _texts(other, split, hub_is_there)
        except PipelineError:
            texts = []
        if not texts:
            absent.append(other.name)
            continue
        _, counts = decontaminated(rows, {other.name: texts}, Overlap())
        held: Counter[str] = counts[other.name]
        told = ", ".join(f"{kind} {number}" for kind, number in held.items() if number)
        yield Line(f"in {other.name}/{split}", told or f"none of its {len(texts)}", LOOK if held.total() else GOOD)
    if absent:
        yield Line("not compared", f"{', '.join(absent)}: their rows are not at hand", LOOK)


def evaluation_splits() -> Iterator[tuple[Card, str]]:
    """What models are measured on: every split of a card without a train split, and splits called `test`."""
    for card in _loadable(list_cards()):
        wanted = card.splits if "train" not in card.splits else [split for split in card.splits if split == "test"]
        yield from ((card, split) for split in wanted)


def _loadable(names: Iterable[str]) -> Iterator[Card]:
    for name in names:
        try:
            yield load_card(name)
        except PipelineError:
            continue  # `make cards` says what is wrong with it


def _texts(card: Card, split: str, hub_is_there: bool) -> list[str]:
    """Prompts of all configs; none where they would have to come from a hub that does not answer."""
    found: dict[str, Any] = {}
    for config in [config for config in card.configs or (None,) if card.shape(config) == "problem"]:
        if card.lacks(split, config) is None and (hub_is_there or not card.needs_hub(split, config)):
            found |= dict.fromkeys(row["prompt"] for row in card.stream(split, config))
    return list(found)
