"""The report of a run: `report.json` for programs, `report.html` for people, from manifests and metrics.

Reads `runs/RUN/` through `report_run`, draws with `report_plots`, and writes two files into the run's folder.
No stage knows of it and nothing is measured here, so it can be changed or deleted without touching a result.
The page is one file that fetches nothing and runs no script; text from a model is escaped and stays text.

The table of the paper that stands beside ours is DeepSeek-R1, arXiv 2501.12948 v2, Table 3. Its tasks and
models are other ones: what can be compared is the direction from stage to stage, not the numbers.

    make report RUN=NAME
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import report_plots
from pipeline.artifact import write_json
from pipeline.errors import ArtifactError
from pipeline.report_run import Curve, Measure, Measures, Run, StageRecord, read_rows, read_run


@dataclass(frozen=True)
class Metric:
    """How a measured number is shown; `better` is +1, -1, or 0 where neither direction is good in itself."""

    label: str
    share: bool = True
    better: int = 1


METRICS = {
    "pass_at_1": Metric("pass@1: a single answer is right"),
    "pass_at_k": Metric("pass@k: one of k answers is right"),
    "format_rate": Metric("well-formed responses"),
    "language_consistency": Metric("reasoning in the language of the question"),
    "instruction_following": Metric("instructions followed"),
    "helpfulness": Metric("helpfulness"),
    "harmlessness": Metric("harmlessness"),
    "mean_response_tokens": Metric("mean response, tokens", share=False, better=0),
    "truncated_rate": Metric("cut at the length limit", better=-1),
}

PAPER_MODELS = ("R1-Zero", "Dev1", "Dev2", "Dev3", "R1")
PAPER_TABLE = (
    ("AIME 2024, pass@1", (77.9, 59.0, 74.0, 78.1, 79.8)),
    ("MATH-500, pass@1", (95.9, 94.2, 95.9, 95.4, 97.3)),
    ("IF-Eval, prompt strict", (46.6, 71.7, 72.0, 78.1, 83.3)),
    ("AlpacaEval 2.0, LC win rate", (24.7, 50.1, 55.8, 62.1, 87.6)),
    ("ArenaHard", (53.6, 77.0, 73.2, 75.6, 92.3)),
)

TEMPLATES = Path(__file__).parent / "templates"
MAX_SHOWN_CHARACTERS = 6000  # of one completion
MARKS = re.compile(r"(</?[A-Za-z_]{1,20}>|<\|[^|<>]{1,40}\|>)")  # whatever looks like a tag or a special token
# Control characters become their pictures (U+2400 ...), characters that turn the direction of writing their
# number, lone surrogates (which UTF-8 cannot hold) the sign for a character that could not be read.
VISIBLE: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    **{code: f"[U+{code:04X}]" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))},
    **dict.fromkeys(range(0xD800, 0xE000), "�"),
}


def write_report(run_dir: Path, plan_states: Mapping[str, str] | None = None) -> Path:
    """Writes `report.json` and `report.html` into `run_dir` and returns the path of the page.

    `plan_states` maps a stage to its state as the plan names it; without it the folders decide. Raises
    ArtifactError when there is no such run; a run that is unfinished or damaged gets a report that says so.
    """
    run = read_run(run_dir, plan_states)
    write_json(run_dir / "report.json", strict(as_json(run)))
    page = run_dir / "report.html"
    temporary = page.with_name(f".{page.name}.tmp")
    temporary.write_text(visible(_template().render(_page(run))), encoding="utf-8")
    temporary.replace(page)
    return page


def summary_line(run_dir: Path) -> str:
    """The closing line of a run: what was learned, and where the report is."""
    return f"{learned(read_run(run_dir))} Report: {run_dir / 'report.html'}"


def save_curve_png(run_dir: Path, path: Path, stage: str | None = None) -> None:
    """Draws pass@1 and response length over the steps of `stage` (default: the first that logged pass@1)."""
    run = read_run(run_dir)
    chosen = next((s for s in run.stages if s.name == stage or (stage is None and "pass_at_1" in s.curves)), None)
    if chosen is None or not chosen.curves:
        raise ArtifactError(
            f"{run_dir} has no learning curve of {stage or 'any stage'}", hint="`make plan` shows the stages"
        )
    before, after = run.evaluation_of(chosen.model), run.evaluation_of(f"stage:{chosen.name}")
    title = f"{run.recipe} at scale {run.scale}: {chosen.name}"
    ends = [found.metrics if found else {} for found in (before, after)]
    report_plots.save_learning_picture(path, chosen.curves, ends[0], ends[1], title)


# --- what was learned -----------------------------------------------------------------------------


def learned(run: Run) -> str:
    """One sentence: held-out pass@1 of the first and the last model; honest where intervals overlap."""
    measured = [stage for stage in run.evaluations if stage.value("pass_at_1")]
    if not measured:
        return "No model has been measured yet."
    first, last = measured[0], measured[-1]
    if first is last:
        value = with_interval("pass_at_1", first.metrics["pass_at_1"])
        return f"Held-out pass@1 of {first.measured} is {value}; no other model has been measured yet."
    sentence = _change("Held-out pass@1", "pass_at_1", first, last, ("rose", "fell"))
    if first.value("mean_response_tokens") and last.value("mean_response_tokens"):
        sentence += "; " + _change("the mean response", "mean_response_tokens", first, last, ("grew", "shrank"))
    return sentence + "."


def _change(what: str, metric: str, first: StageRecord, last: StageRecord, verbs: tuple[str, str]) -> str:
    """`what` rose or fell from A to B; where the intervals touch, it only went, and the sentence says why."""
    old, new = first.metrics[metric], last.metrics[metric]
    apart = old.apart_from(new)
    verb = "went" if not apart else verbs[0] if (new.value or 0) > (old.value or 0) else verbs[1]
    if METRICS[metric].share:
        values = f"from {with_interval(metric, old)} to {with_interval(metric, new)}"
    else:
        values = f"from {_format(metric, old.value)} to {_format(metric, new.value)} tokens"
    if apart:
        return f"{what} {verb} {values}"
    reason = "the intervals overlap" if old.ci95 and new.ci95 else "an interval is missing"
    return f"{what} {verb} {values} ({reason}, so this shows no change)"


def comparison_notes(run: Run) -> list[str]:
    """A sentence for every evaluation that measured something else, or otherwise, than the first one did."""
    notes = []
    evaluations = [stage for stage in run.evaluations if stage.manifest.fingerprint]
    for stage in evaluations[1:]:
        if differing := _differences(_conditions(evaluations[0]), _conditions(stage)):
            names = ", ".join(differing)
            notes.append(f"{stage.name} differs from {evaluations[0].name} in {names}: compare them with care.")
    return notes


def _conditions(stage: StageRecord) -> dict[str, Any]:
    """Whatever the numbers of an evaluation depend on besides the model and the seed."""
    inputs = {field: parents for field, parents in stage.manifest.inputs.items() if field != "model"}
    return {**stage.manifest.settings, **inputs, "seed": None}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


# --- numbers as text ------------------------------------------------------------------------------


def _format(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    if METRICS[metric].share and 0 <= value <= 1:  # a reward model's score may lie outside and is shown as it is
        return f"{100 * value:.1f} %"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"


def _interval(metric: str, measure: Measure) -> str:
    """`[23.6, 31.3]`, or nothing where no interval is known."""
    if measure.ci95 is None:
        return ""
    as_text = (_format(metric, bound).removesuffix(" %") for bound in measure.ci95)
    return f"[{', '.join(as_text)}]"


def with_interval(metric: str, measure: Measure) -> str:
    """`27.4 % [23.6, 31.3]`."""
    return f"{_format(metric, measure.value)} {_interval(metric, measure)}".rstrip()


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def gibibytes(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} GiB"


# --- the parts of the page ------------------------------------------------------------------------


def metric_rows(columns: Sequence[Measures]) -> list[dict[str, Any]]:
    """`{"label", "cells": [{"value", "interval", "n", "best"}]}` for each of METRICS that some column has."""
    rows = []
    for metric, shown in METRICS.items():
        measures = [column.get(metric, Measure(None)) for column in columns]
        if all(measure.value is None for measure in measures):
            continue
        best = _best(measures, shown.better)
        cells = [
            {
                "value": _format(metric, m.value),
                "interval": _interval(metric, m),
                "n": m.n,
                "best": number == best,
            }
            for number, m in enumerate(measures)
        ]
        rows.append({"label": shown.label, "cells": cells})
    return rows


def _best(measures: Sequence[Measure], better: int) -> int | None:
    """The position of the best measure, only when its interval is apart from every other one's."""
    known = [(better * m.value, number) for number, m in enumerate(measures) if m.value is not None]
    if len(known) < 2 or better == 0:
        return None
    number = max(known)[1]
    others = [measures[other] for _, other in known if other != number]
    return number if all(measures[number].apart_from(other) for other in others) else None


def tables_by_domain(evaluations: Sequence[StageRecord]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(domain, rows) for every domain that some model was measured in, in the order of first appearance."""
    domains = dict.fromkeys(domain for stage in evaluations for domain in stage.by_domain)
    return [(domain, metric_rows([stage.by_domain.get(domain, {}) for stage in evaluations])) for domain in domains]


def samples(run: Run) -> list[dict[str, Any]]:
    """For every stage whose model was measured: three problems with the completions before and after it.

    Returns `{"stage", "before", "after", "counts", "problems"}`; `counts` is how many problems went from
    wrong to right and so on, by the first completion of each, so that three picked problems cannot flatter.
    """
    found = []
    for stage in run.stages:
        after = run.evaluation_of(f"stage:{stage.name}")
        before = run.evaluation_of(stage.model)
        new, old = _first_completions(after), _first_completions(before)
        if not after or not new:
            continue
        both = {key: (old.get(key), row) for key, row in new.items() if key in old or not old}
        found.append(
            {
                "stage": stage.name,
                "before": before.measured if before and old else None,
                "after": after.measured,
                "counts": _count_changes(both.values()),
                "problems": [_sample(*both[key]) for key in _pick(both)],
            }
        )
    return found


def _first_completions(evaluation: StageRecord | None) -> dict[str, dict[str, Any]]:
    """Problem id -> the first of its completions, in the order of the file."""
    rows = read_rows(evaluation.folder / "completions.jsonl") if evaluation and evaluation.folder else []
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(str(row.get("id")), row)
    return first


Pair = tuple[dict[str, Any] | None, dict[str, Any]]
CHANGES = ("wrong → right", "right → right", "wrong → wrong", "right → wrong", "right", "wrong")


def _change_of(pair: Pair) -> str:
    return " → ".join("right" if row.get("right") is True else "wrong" for row in pair if row is not None)


def _count_changes(pairs: Iterable[Pair]) -> list[tuple[str, int]]:
    changes = [_change_of(pair) for pair in pairs]
    return [(change, changes.count(change)) for change in CHANGES if change in changes]


def _pick(pairs: Mapping[str, Pair], num: int = 3) -> list[str]:
    """The first problem of each change, then the first others; always the same for the same files."""
    first: dict[str, str] = {}
    for key, pair in pairs.items():
        first.setdefault(_change_of(pair), key)
    picked = [first[change] for change in CHANGES if change in first]
    return (picked + [key for key in pairs if key not in picked])[:num]


def _sample(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    shown = {name: visible(str(new.get(name, ""))) for name in ("id", "prompt", "answer", "domain", "language")}
    return {**shown, "before": _shown(old) if old else None, "after": _shown(new)}


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    text = str(row.get("completion", ""))
    cut = len(text) - MAX_SHOWN_CHARACTERS
    return {
        "pieces": marked(visible(text[:MAX_SHOWN_CHARACTERS])),
        "cut": cut if cut > 0 else 0,
        "verdict": str(row.get("verdict", "")) or ("right" if row.get("right") is True else "wrong"),
        "right": row.get("right") is True,
        "tokens": row.get("tokens"),
        "truncated": row.get("truncated") is True,
    }


def visible(text: str) -> str:
    """`text` with control characters made visible and nothing that UTF-8 cannot hold."""
    return text.translate(VISIBLE)


def marked(text: str) -> list[tuple[str, bool]]:
    """`text` in pieces, (piece, looks like a tag); joined they are `text` again."""
    return [(piece, number % 2 == 1) for number, piece in enumerate(MARKS.split(text)) if piece]


def lineage_nodes(run: Run) -> list[report_plots.Node]:
    """The boxes of the graph: models from outside, then every stage but evaluations, with pass@1."""
    made = [stage for stage in run.stages if stage.kind != "evaluate"]
    parents = {stage.name: _parents(stage) for stage in made}
    outside = dict.fromkeys(ref for refs in parents.values() for ref in refs if not ref.startswith("stage:"))
    nodes = [report_plots.Node(ref, _short_ref(ref), ("from outside", *_box_score(run, ref))) for ref in outside]
    for stage in made:
        ref, done = f"stage:{stage.name}", stage.state.startswith("done")
        lines = (stage.kind, *(() if done else (stage.state,)), *_box_score(run, ref))
        nodes.append(report_plots.Node(ref, stage.name, lines, tuple(parents[stage.name]), done))
    return nodes


def _parents(stage: StageRecord) -> list[str]:
    """The references of a stage to models and to what other stages made; cards have a table of their own."""
    recorded = [parent.ref for parents in stage.manifest.inputs.values() for parent in parents]
    refs = dict.fromkeys([*_texts(stage.settings), *recorded])
    return [ref for ref in refs if ref.startswith(("stage:", "run:", "hub:", "path:"))]


def _texts(value: Any) -> Iterator[str]:
    """Every text inside nested settings: a reward, too, may name a model."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(part)


def _short_ref(ref: str) -> str:
    """`hub:Org/Model@abc` -> `Model`, `path:a/b` -> `b`, `stage:x` -> `x`."""
    return ref.partition(":")[2].partition("@")[0].rstrip("/").rpartition("/")[2]


def _box_score(run: Run, ref: str) -> tuple[str, ...]:
    evaluation = run.evaluation_of(ref)
    measure = evaluation.value("pass_at_1") if evaluation else None
    return (f"pass@1 {_format('pass_at_1', measure.value)}",) if measure else ()


def cost_rows(run: Run) -> list[dict[str, Any]]:
    """Seconds and memory of every finished stage, with its share of the longest for the bar."""
    finished = [(stage.name, stage.manifest) for stage in run.stages if stage.manifest.seconds is not None]
    longest = max((manifest.seconds or 0 for _, manifest in finished), default=0) or 1
    return [
        {
            "stage": name,
            "percent": round(100 * (manifest.seconds or 0) / longest, 1),
            "duration": duration(manifest.seconds),
            "memory": gibibytes(manifest.peak_memory_gib),
            "gpu_memory": gibibytes(manifest.peak_gpu_memory_gib),
        }
        for name, manifest in finished
    ]


# --- the two files --------------------------------------------------------------------------------


def as_json(run: Run) -> dict[str, Any]:
    """The content of `report.json`: plain values only, None where nothing is known."""
    return {
        "recipe": run.recipe,
        "scale": run.scale,
        "run": run.name,
        "seed": run.seed,
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
        "learned": learned(run),
        "notes": run.notes + comparison_notes(run),
        "stages": [_stage_json(stage) for stage in run.stages],
        "curves": {stage.name: stage.curves for stage in run.stages if stage.curves},
        "lineage": [_lineage_json(stage) for stage in run.stages if stage.manifest.fingerprint],
        "cost": _cost_json(run),
    }


def strict(value: Any) -> Any:
    """`value` with null for NaN and infinities, which JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: strict(part) for key, part in value.items()}
    return [strict(part) for part in value] if isinstance(value, list | tuple) else value


def _stage_json(stage: StageRecord) -> dict[str, Any]:
    return {
        "name": stage.name,
        "kind": stage.kind,
        "state": stage.state,
        "seconds": stage.manifest.seconds,
        "fingerprint": stage.manifest.fingerprint or None,
        "metrics": _measures_json(stage.metrics),
        "by_domain": {domain: _measures_json(measures) for domain, measures in stage.by_domain.items()},
    }


def _measures_json(measures: Measures) -> dict[str, Any]:
    return {name: {"value": m.value, "ci95": m.ci95, "n": m.n} for name, m in measures.items()}


def _lineage_json(stage: StageRecord) -> dict[str, Any]:
    facts = stage.manifest.model_dump(
        include={"fingerprint", "inputs", "cards", "git", "packages", "hardware", "started"}
    )
    return {"stage": stage.name, **facts}


def _cost_json(run: Run) -> dict[str, Any]:
    fields = {"seconds", "peak_memory_gib", "peak_gpu_memory_gib"}
    stages = {s.name: s.manifest.model_dump(include=fields) for s in run.stages if s.manifest.seconds is not None}
    return {"total_seconds": sum(cost["seconds"] for cost in stages.values()), "stages": stages}


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    return environment.get_template("report.html.j2")


def _page(run: Run) -> dict[str, Any]:
    """Everything the template shows, by name."""
    evaluations = run.evaluations
    main_rows = metric_rows([stage.metrics for stage in evaluations])
    shown = {row["label"] for row in main_rows}
    return {
        "run": run,
        "learned": learned(run),
        "notes": run.notes + comparison_notes(run),
        "generated": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "models": [stage.measured for stage in evaluations],
        "rows": main_rows,
        "not_measured": [metric.label for metric in METRICS.values() if metric.label not in shown],
        "domains": tables_by_domain(evaluations),
        "curves": _drawn_curves(run.stages),
        "paper_models": PAPER_MODELS,
        "paper_table": PAPER_TABLE,
        "samples": samples(run),
        "lineage": report_plots.draw_lineage(lineage_nodes(run)),
        "made": [stage for stage in run.stages if stage.manifest.fingerprint],
        "cards": sorted({_card_facts(card) for stage in run.stages for card in stage.manifest.cards}),
        "packages": sorted({(k, str(v)) for stage in run.stages for k, v in stage.manifest.packages.items()}),
        "costs": cost_rows(run),
        "total": duration(sum(stage.manifest.seconds or 0 for stage in run.stages)),
    }


def _drawn_curves(stages: Iterable[StageRecord]) -> list[tuple[str, int, int, list[report_plots.Drawing]]]:
    """(stage, last step, window of the smooth line, drawings) for every stage with something to draw."""
    found = []
    for stage in stages:
        longest: Curve = max(stage.curves.values(), key=len, default=[])
        if drawings := report_plots.draw_curves(stage.curves):
            found.append((stage.name, longest[-1][0], report_plots.smoothing_window(len(longest)), drawings))
    return found


def _card_facts(card: Any) -> tuple[str, str, str]:
    licence = card.licence if isinstance(card.licence, str) else ", ".join(card.licence or ())
    return card.name, str(card.revision or "–"), licence or "–"
