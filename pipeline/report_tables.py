"""The tables of the report: metric x stage, and what changed from stage to stage beside what the paper says of it.

Reads the evaluations of a run and of the run named as `beside:` in its recipe; makes rows of plain values for the
template and for `report.json`. A change counts as one only where its 95 % interval does not hold 0, taken problem by
problem where both models were asked the same (`report_measures.Measure.change_to`).

Command: `make report RUN=NAME`
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from pipeline import report_paper
from pipeline.report_measures import METRICS, Change, Measure, Measures, as_text, interval, signed
from pipeline.report_run import Run

AS_THE_PAPER, NOT_SHOWN, AGAINST, BOTH_WAYS = "as in the paper", "no change shown", "against the paper", "both ways"
ARROWS = {1: "▲", 0: "=", -1: "▼"}


@dataclass(frozen=True)
class Column:
    """One measured model: a column of the table."""

    model: str
    metrics: Measures
    by_domain: dict[str, Measures] = field(default_factory=dict)
    run: str = ""
    """The other run it comes from; empty for this one's own."""
    paper: str = ""
    """The model of the paper it stands for."""
    is_ours: bool = True
    """False for a model that no stage has made, such as the base."""


def columns_of(run: Run) -> list[Column]:
    """The measured models of the run in the order of its recipe."""
    models = report_paper.models_of(stage.measured for stage in run.evaluations)
    return [
        Column(
            stage.measured,
            stage.metrics,
            stage.by_domain,
            paper=models.get(stage.measured, ""),
            is_ours=str(stage.model).startswith("stage:"),
        )
        for stage in run.evaluations
    ]


def columns_beside(run: Run) -> list[Column]:
    """The measured models of the run shown beside this one."""
    if run.beside is None:
        return []
    return [replace(column, run=run.beside.name) for column in columns_of(run.beside)]


# --- metric x stage -------------------------------------------------------------------------------


def metric_rows(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """A row for each of METRICS that some column has: `label`, `n`, `cells` and the `paper`'s rows for that metric.

    A cell is `{"value", "interval", "n", "best"}`; where all of them rest on as many problems, only the row has `n`.
    A row of the paper is `{"name", "scores"}`, with None where it has none.
    """
    rows = []
    for metric, shown in METRICS.items():
        measures = [column.metrics.get(metric, Measure(None)) for column in columns]
        if all(measure.value is None for measure in measures):
            continue
        best = _best(measures, shown.better)
        sizes = {m.n for m in measures if m.value is not None}
        same = sizes.pop() if len(sizes) == 1 else None
        cells = [
            {
                "value": as_text(metric, m.value),
                "interval": interval(metric, m),
                "n": m.n if same is None else None,
                "best": number == best,
            }
            for number, m in enumerate(measures)
        ]
        rows.append({"label": shown.label, "n": same, "cells": cells, "paper": _paper_rows(metric, columns)})
    return rows


def _best(measures: Sequence[Measure], better: int) -> int | None:
    """The position of the best measure, only when it differs from every other one by more than its interval."""
    known = [(better * m.value, number) for number, m in enumerate(measures) if m.value is not None]
    if len(known) < 2 or better == 0:
        return None
    number = max(known)[1]
    changes = [measures[other].change_to(measures[number]) for _, other in known if other != number]
    return number if all(change and change.sign for change in changes) else None


def _paper_rows(metric: str, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """The paper's scores under the same columns, where at least two of them stand for one of its models."""
    if sum(bool(column.paper) for column in columns) < 2:
        return []
    return [
        {"name": b.name, "scores": [b.score(column.paper) if column.paper else None for column in columns]}
        for b in report_paper.BENCHMARKS
        if b.metric == metric
    ]


def tables_by_domain(columns: Sequence[Column]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(domain, rows) for every domain that some model was measured in, in the order of first appearance."""
    domains = dict.fromkeys(domain for column in columns for domain in column.by_domain)
    return [
        (domain, metric_rows([replace(c, metrics=c.by_domain.get(domain, {}), paper="") for c in columns]))
        for domain in domains
    ]


# --- from stage to stage --------------------------------------------------------------------------

Step = tuple[Column, Column]


def steps_of(run: Run) -> list[Step]:
    """Every measured model and the one measured after it."""
    return list(pairwise(columns_of(run)))


def steps_beside(run: Run) -> list[Step]:
    """Every measured model whose name begins like one of the run beside, after that one.

    `reasoning_rl_mixed` of an ablation stands beside `reasoning_rl` of the whole run.
    """
    others = {column.model: column for column in columns_beside(run)}
    found = []
    for column in columns_of(run):
        alike = [name for name in others if column.model.startswith(name)]
        if alike and column.is_ours:
            found.append((others[max(alike, key=len)], column))
    return found


def changes(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """Every change of every metric, for programs: from, to, metric, value, ci95, whether it is paired, sign, and what
    the paper says."""
    return [
        {
            "from": before.model,
            "from_run": before.run or None,
            "to": after.model,
            "metric": metric,
            "value": change.value,
            "ci95": list(change.ci95),
            "paired": change.paired,
            "sign": change.sign,
            "paper": [{"name": s.name, "sign": s.sign, "points": s.points} for s in _said(metric, before, after)],
            "verdict": _verdict(change, _said(metric, before, after)) or None,
        }
        for before, after in steps
        for metric in METRICS
        if (change := _change(metric, before, after))
    ]


def change_rows(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """`{"label", "cells"}` for each metric that changed measurably or not; a cell is None where it was not measured.

    A cell is `{"arrow", "sign", "better", "value", "interval", "paper", "verdict"}`: `better` is +1 where the change
    is a good one, -1 where it is a bad one; `paper` is a list of texts such as `AIME −18.9`.
    """
    rows = []
    for metric, shown in METRICS.items():
        cells = [_cell(metric, before, after) for before, after in steps]
        if any(cells):
            rows.append({"label": shown.label, "cells": cells})
    return rows


def verdicts(steps: Iterable[Step]) -> Counter[str]:
    """How often the changes go the paper's way, show nothing, or go against it; without those it says nothing of."""
    return Counter(change["verdict"] for change in changes(steps) if change["verdict"])


def _change(metric: str, before: Column, after: Column) -> Change | None:
    return before.metrics.get(metric, Measure(None)).change_to(after.metrics.get(metric, Measure(None)))


def _said(metric: str, before: Column, after: Column) -> list[report_paper.Said]:
    """What the paper says of this change; nothing where the two are of different runs."""
    if not before.paper or not after.paper or before.run != after.run:
        return []
    return report_paper.said(metric, before.paper, after.paper)


def _verdict(change: Change, said: Sequence[report_paper.Said]) -> str:
    """Ours beside the paper's: nothing where the paper says nothing."""
    signs = {s.sign for s in said} - {0}
    if not signs:
        return ""
    if change.sign == 0:
        return NOT_SHOWN
    if len(signs) > 1:
        return BOTH_WAYS
    return AS_THE_PAPER if change.sign in signs else AGAINST


def _cell(metric: str, before: Column, after: Column) -> dict[str, Any] | None:
    change = _change(metric, before, after)
    if change is None:
        return None
    said = _said(metric, before, after)
    low, high = (signed(metric, bound) for bound in change.ci95)
    return {
        "arrow": ARROWS[change.sign],
        "sign": change.sign,
        "better": change.sign * METRICS[metric].better,
        "value": signed(metric, change.value),
        "interval": f"[{low}, {high}]",
        "paper": [_as_said(s) for s in said],
        "verdict": _verdict(change, said),
    }


def _as_said(said: report_paper.Said) -> str:
    """`AIME −18.9`, or `▲ in words, §3.2.1`."""
    if said.points is None:
        return f"{ARROWS[said.sign]} in words, {said.name}"
    return f"{said.name} {said.points:+.1f}".replace(" -", " −")
