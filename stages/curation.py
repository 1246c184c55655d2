"""Curation of more rows than memory holds: filters, duplicates, benchmarks, in one pass over the rows.

Not a stage itself; `Curate` is. Reads rows (demos or problems) one by one, for instance from `Card.stream`; makes
Parquet shards of those that stay, and counts the others by reason. Every core filters and compares with the benchmarks;
duplicates are found in order, in this process. Of rows with the same prompt the first that passes the filters stays.

In memory are the benchmarks, the prompts so far (not the responses), and what prompts share with benchmarks: only at
the end is it known which n-gram is a phrase of the trade. Contaminated rows are taken out of their shards then.

Paper: DeepSeek-R1 §2.3.3 (filters) and supplementary (10-grams); how we differ: `stages/filters.py` and
`stages/decontamination.py`. How fast it is, and how much memory it takes: `python -m benchmarks.curation`.
"""

import itertools
import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from pipeline.card import canonical_id
from pipeline.sources import read_rows
from stages.chat import parse
from stages.dataset import write_parquet
from stages.decontamination import Benchmarks, Hits, Overlap
from stages.dedup import Dedup, Known
from stages.filters import Filters
from stages.questions import Questions

Row = dict[str, str]
BATCH = 128
"""Rows that go to another process together."""


class Rules(BaseModel):
    """What a row must be like to stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    questions: Questions | None = Field(None, description="of prompts; null = all may stay")
    filters: Filters | None = Field(Filters(), description="of responses; null = rows have none, or all may stay")
    dedup: Dedup = Dedup()
    dedup_domains: tuple[str, ...] | None = Field(
        None, description="where duplicates are looked for; null = everywhere"
    )
    overlap: Overlap = Overlap()


class Look(NamedTuple):
    """What can be said of a row by itself."""

    reason_to_drop: str | None
    hits: Hits


def curate(
    rows: Iterable[Row],
    folder: Path,
    rules: Rules,
    benchmarks: Mapping[str, Sequence[str]],
    num_processes: int | None = None,
    shard_size: int = 5000,
) -> dict[str, Any]:
    """Writes `part-00000.parquet …` into the folder and returns the counts: `rows` by fate, `benchmarks` by reason.

    Args:
        rows: all with the same columns; `prompt`, and with filters `response` and `language`.
        benchmarks: name -> texts that no row may hold.
        num_processes: processes that filter; 1 = none beside this one; None = as many as there are cores.
    """
    known, held = Benchmarks(benchmarks, rules.overlap), _Suspects()
    counts = Counter(dict.fromkeys(("found", "duplicate", "near_duplicate", "contaminated", "kept"), 0))
    with _looking(rules, benchmarks, num_processes or os.cpu_count() or 1) as look:
        passed = _passed(look(rows), Known(rules.dedup), rules, counts, held)
        for number in itertools.count():
            if not (shard := list(itertools.islice(passed, shard_size))):
                break
            _write(folder, number, shard)
    by_benchmark = known.no_counts()
    taken: dict[int, set[int]] = {}
    for place, holder in held.judged(known):
        name, kind = holder
        by_benchmark[name][kind] += 1
        taken.setdefault(place // shard_size, set()).add(place % shard_size)
    for number, places in taken.items():
        left = [row for place, row in enumerate(read_rows(_part(folder, number))) if place not in places]
        _write(folder, number, left)
        counts["contaminated"] += len(places)
    counts["kept"] -= counts["contaminated"]
    return {"rows": dict(counts), "benchmarks": {name: dict(counter) for name, counter in by_benchmark.items()}}


class _Suspects:
    """The rows that share anything with a benchmark, by their place among those that passed.

    A prompt that comes again, as with several responses to it, makes no n-gram a phrase.
    """

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []
        self._hits: dict[int, Hits] = {}

    def add(self, place: int, prompt: str, hits: Hits) -> None:
        if hits:
            name = int(canonical_id(prompt), 16)
            self._places.append((place, name))
            self._hits[name] = hits

    def judged(self, known: Benchmarks) -> Iterator[tuple[int, tuple[str, str]]]:
        holders = dict(zip(self._hits, known.held(list(self._hits.values())), strict=True))
        for place, name in self._places:
            if (holder := holders[name]) is not None:
                yield place, holder


def _passed(
    looks: Iterable[tuple[Row, Look]], known: Known, rules: Rules, counts: Counter[str], held: _Suspects
) -> Iterator[Row]:
    """The rows that are good by themselves and new."""
    for row, look in looks:
        counts["found"] += 1
        is_compared = rules.dedup_domains is None or row["domain"] in rules.dedup_domains
        reason = look.reason_to_drop or (known.reason_to_drop(row) if is_compared else None)
        if reason:
            counts[reason] += 1
            continue
        held.add(counts["kept"], row["prompt"], look.hits)
        counts["kept"] += 1
        yield row


def _write(folder: Path, number: int, rows: Sequence[Row]) -> None:
    if rows:
        write_parquet(_part(folder, number), [rows], dict.fromkeys(rows[0], "string"))
    else:
        _part(folder, number).unlink(missing_ok=True)


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.parquet"


class _Looker:
    """Looks at rows one by one; lives once in every process."""

    def __init__(self, rules: Rules, benchmarks: Mapping[str, Sequence[str]]) -> None:
        self._rules = rules
        self._benchmarks = Benchmarks(benchmarks, rules.overlap)

    def look(self, row: Row) -> Look:
        reason = self._reason_to_drop(row)
        return Look(reason, self._benchmarks.hits(row["prompt"]) if reason is None else Hits(None, ()))

    def _reason_to_drop(self, row: Row) -> str | None:
        questions, filters = self._rules.questions, self._rules.filters
        reason = questions.reason_to_drop(row) if questions else None
        if reason is None and filters:
            reason = filters.reason_to_drop(parse(row["response"]), row["language"])
        return reason


Looking = Callable[[Iterable[Row]], Iterator[tuple[Row, Look]]]
_looker: _Looker
"""Of a child process."""


@contextmanager
def _looking(rules: Rules, benchmarks: Mapping[str, Sequence[str]], num_processes: int) -> Iterator[Looking]:
    """A function from rows to (row, look), in order, that uses so many processes and holds few batches at a time."""
    if num_processes == 1:
        looker = _Looker(rules, benchmarks)
        yield lambda rows: ((row, looker.look(row)) for row in rows)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, _start, (rules, benchmarks)) as pool:
        yield lambda rows: _in_order(pool, rows, most_waiting=3 * num_processes)


def _in_order(pool: ProcessPoolExecutor, rows: Iterable[Row], most_waiting: int) -> Iterator[tuple[Row, Look]]:
    waiting: deque[tuple[list[Row], Future[list[Look]]]] = deque()
    rows = iter(rows)
    while True:
        while len(waiting) < most_waiting and (batch := list(itertools.islice(rows, BATCH))):
            waiting.append((batch, pool.submit(_look_at, batch)))
        if not waiting:
            return
        batch, future = waiting.popleft()
        yield from zip(batch, future.result(), strict=True)


def _start(rules: Rules, benchmarks: Mapping[str, Sequence[str]]) -> None:
    global _looker
    _looker = _Looker(rules, benchmarks)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's process waits for work for ever, also when its parent was killed."""
    if parent := multiprocessing.parent_process():
        wait([parent.sentinel])
        os._exit(1)


def _look_at(rows: list[Row]) -> list[Look]:
    return [_looker.look(row) for row in rows]
