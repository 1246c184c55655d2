"""Curation: of rows from several sources those that are worth learning, and what became of each of the others.

Reads problems, or demos, from any references, and where asked the pass rates that a rejection_sampling stage measured;
makes a data set of the same rows in `rows/part-00000.parquet …`, each with the `source` it came from, what was left out
and why in `counts.json`, and both in words in the data card `README.md`. In this order a row is left out

1. for how often it was solved (`min_pass_rate`, `max_pass_rate`), by `pass_rates` or by its own column,
2. for its question (`questions.py`), then for its response (`filters.py`),
3. because it is there already, exactly or nearly (`dedup.py`); the source that is named first keeps it,
4. because an evaluation set holds it (`decontamination.py`),
5. because others are better, alike, or enough (`selection.py`).

Paper: DeepSeek-R1 §2.3.3 (filters), supplementary (decontamination). Recipes: LIMO (arXiv 2502.03387), OpenThoughts
(arXiv 2506.04178). How we differ: no model judges a question or a chain; each of these is a rule that can be counted.

Rows go through 1 to 4 one by one, on all cores (`curation.py`), so a source may be larger than memory; 5 holds what is
left. The seed says which rows `num_rows` takes, and nothing else is random. A stage that was killed begins again.

Command: `make openthoughts DRY_RUN=1` for the counts alone; else as part of `make limo` or `make openthoughts`
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from pipeline.artifact import read_json
from pipeline.bad_rows import BadRow, Tally
from pipeline.card import COLUMNS, Row
from pipeline.errors import DataError
from pipeline.refs import DATASET, DatasetRef
from pipeline.sources import read_rows
from pipeline.stage import Inputs, Runtime, Stage, Workdir
from stages.curated_card import write_curated_card
from stages.curation import Rules, curate
from stages.dataset import write_parquet
from stages.decontamination import Overlap
from stages.dedup import Dedup
from stages.difficulty import read_pass_rates
from stages.filters import FAILS as FILTERS
from stages.filters import Filters
from stages.questions import FAILS as QUESTIONS
from stages.questions import Questions
from stages.rows import benchmark_texts
from stages.selection import REASONS, Selection

MAX_BAD_SHARE = 0.2
"""Of a source's rows, as of a card's (`pipeline/bad_rows.py`)."""
ONE_SHAPE = "curate problems and demos in stages of their own"
SOLVED = ("bad", "unknown_pass_rate", "too_hard", "too_easy")
BY_RULE = (*(name for rules in QUESTIONS.values() for name in rules), *FILTERS)
FATES = ("found", *SOLVED, *BY_RULE, "duplicate", "near_duplicate", "contaminated", *REASONS, "kept")
"""What can become of a row, in the order of the rules; each is counted once, so the counts add up."""


class Curate(Stage):
    """Takes the good rows of several sources, once each, without those that evaluation sets hold."""

    kind: ClassVar[str] = "curate"
    makes: ClassVar[str] = DATASET

    sources: list[DatasetRef] = Field(min_length=1, description="problems, or demos; all of one shape")
    num_rows: int | None = Field(None, ge=1, description="at most so many from each source; null = all")
    pass_rates: DatasetRef | None = Field(None, description="says how often each problem is solved; null = the rows do")
    min_pass_rate: float = Field(0.0, ge=0, le=1, description="leave out rows that were solved less often")
    max_pass_rate: float = Field(1.0, ge=0, le=1, description="leave out rows that were solved more often")
    questions: Questions | None = Field(None, description="rules of wording; null = every question may stay")
    filters: Filters | None = Field(None, description="rules for the responses of demos; null = all may stay")
    dedup: Dedup = Field(Dedup(), description="of prompts; both off where several demos of a problem may stay")
    dedup_domains: tuple[str, ...] | None = Field(None, description="where `dedup` looks; null = everywhere")
    decontaminate: list[DatasetRef] = Field(
        default=[], description="rows that these hold are left out", json_schema_extra={"split": "eval"}
    )
    overlap: Overlap = Field(Overlap(), description="when one of `decontaminate` holds a row")
    select: Selection = Field(Selection(), description="which of those that are left")

    num_processes: Runtime[int | None] = Field(None, ge=1, description="processes; null = one for each core")

    @model_validator(mode="after")
    def _pass_rates_are_a_range(self) -> Self:
        if self.min_pass_rate > self.max_pass_rate:
            low, high = self.min_pass_rate, self.max_pass_rate
            raise ValueError(f"min_pass_rate {low:g} is above max_pass_rate {high:g}: no row lies between")
        return self

    def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """Writes the files named in the module docstring; returns how many rows there are, and of how many.

        Raises DataError where the sources are unlike each other, or nothing is left; the counts say why.
        """
        folder = work.path / "rows"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        found, unsolved = Counter[str](), Counter[str]()
        rows = self._solved(inputs, found, unsolved, work)
        benchmarks = benchmark_texts(inputs, self.decontaminate)
        counts = curate(rows, folder, self._rules, benchmarks, self.num_processes)
        fates = {**unsolved, **counts["rows"], **self._selected(folder), "found": found.total()}
        counts["rows"] = {name: fates[name] for name in FATES if name in fates}
        counts |= _kept(folder, found)
        work.write_json("counts.json", counts)
        _require_some(counts["rows"])
        write_curated_card(self, counts, work.path)
        num_rows = counts["rows"]["kept"]
        return {"num_rows": num_rows, "num_prompts": counts["num_prompts"], "kept_share": num_rows / found.total()}

    def dry_run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]:
        """All of it: no model is needed."""
        self.run(inputs, work)
        return dict(read_json(work.path / "counts.json"))

    @property
    def _rules(self) -> Rules:
        return Rules(
            questions=self.questions,
            filters=self.filters,
            dedup=self.dedup,
            dedup_domains=self.dedup_domains,
            overlap=self.overlap,
        )

    def _rows(self, inputs: Inputs, found: Counter[str], dropped: Counter[str], work: Workdir) -> Iterator[Row]:
        """Every whole row with all columns of its shape, its `source` and its own pass rate, counted by source.

        Raises DataError for a source that is empty, or that has too many bad rows.
        """
        columns: tuple[str, ...] = ()
        for number, (ref, rows) in enumerate(inputs.streams("sources", self.num_rows)):
            tally = Tally(f"sources, {ref}", MAX_BAD_SHARE, str(ref))
            for row in rows:
                tally.num_found += 1
                columns = columns or self._columns(row)
                if missing := [column for column in columns or COLUMNS["demo"] if column not in row]:
                    tally.count_bad(BadRow(f"no {', '.join(missing)}", hint=ONE_SHAPE), row)
                    continue
                tally.num_kept += 1
                yield {**{c: row[c] for c in columns}, "pass_rate": row.get("pass_rate", ""), "source": str(ref)}
            tally.finish()
            found[str(ref)] += tally.num_found
            dropped["bad"] += tally.bad.total()
            work.progress(number + 1, len(self.sources), "sources")

    def _columns(self, row: Row) -> tuple[str, ...]:
        """The columns of a row's shape; none for a row of another shape."""
        shape = next((name for name in ("demo", "problem") if set(COLUMNS[name]) <= row.keys()), None)
        if shape == "problem" and (self.filters or self.select.quality):
            hint = "leave them out, or curate the demos that a rejection_sampling stage makes of these problems"
            raise DataError("filters and select.quality are about responses, and problems have none", hint)
        return COLUMNS[shape] if shape else ()

    def _solved(self, inputs: Inputs, found: Counter[str], dropped: Counter[str], work: Workdir) -> Iterator[Row]:
        """The rows that were solved as often as asked for; the others are counted."""
        rates = read_pass_rates(inputs.folder("pass_rates")) if self.pass_rates else None
        for row in self._rows(inputs, found, dropped, work):
            if rates is not None:
                row["pass_rate"] = str(rates.get(row["prompt"], ""))
            if (reason := self._unsolved(row["pass_rate"])) is None:
                yield row
            else:
                dropped[reason] += 1

    def _unsolved(self, pass_rate: str) -> str | None:
        """Why a row with this pass rate is left out, if it is; a range that holds everything asks for none."""
        if self.pass_rates is None and (self.min_pass_rate, self.max_pass_rate) == (0.0, 1.0):
            return None
        rate = _rate(pass_rate)
        if rate is None:
            return "unknown_pass_rate"
        return "too_hard" if rate < self.min_pass_rate else "too_easy" if rate > self.max_pass_rate else None

    def _selected(self, folder: Path) -> dict[str, int]:
        """Writes the rows again that `select` chooses; returns the counts that this changes."""
        files = sorted(folder.glob("*.parquet"))
        if self.select == Selection() or not files:
            return {}
        chosen, dropped = self.select.chosen([row for file in files for row in read_rows(file)])
        for file in files:
            file.unlink()
        write_parquet(files[0], [chosen], dict.fromkeys(chosen[0], "string"))
        return {**dropped, "kept": len(chosen)}


def _kept(folder: Path, found: Counter[str]) -> dict[str, Any]:
    """Counts of the rows that were written, by source and by domain."""
    sources, domains, prompts = Counter[str](), Counter[str](), set[int]()
    for row in (row for file in folder.glob("*.parquet") for row in read_rows(file)):
        sources[row["source"]] += 1
        domains[f"{row['domain']}, {row['language']}"] += 1
        prompts.add(hash(row["prompt"]))
    return {
        "sources": {name: {"found": number, "kept": sources[name]} for name, number in found.items()},
        "kept_by_domain": dict(domains.most_common()),
        "num_prompts": len(prompts),
    }


def _rate(text: str) -> float | None:
    """A pass rate; None where there is none that can be meant. 0.1 of ten samples is 0.1."""
    try:
        rate = round(float(text), 9)
    except ValueError:
        return None
    return rate if 0 <= rate <= 1 else None


def _require_some(rows: dict[str, int]) -> None:
    if not rows["kept"]:
        told = ", ".join(f"{name} {number}" for name, number in rows.items() if number)
        raise DataError(f"no row is left ({told})", hint="loosen the rules, or name more sources")
