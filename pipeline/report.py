"""The report of a run: `report.json` for programs, `report.html` for people, from manifests and metrics.

Reads `runs/RUN/` through `report_run` and writes two files into the run's folder. What stands in them is made by
`report_measures` (numbers and changes), `report_tables` (metric x stage), `report_paper` (the paper's own table),
`report_samples` (what the models said), `report_lineage` (origin and cost) and `report_plots` (drawings). No stage
knows of it and nothing is measured here, so it can be changed or deleted without touching a result. The page is one
file that fetches nothing and runs no script; text from a model is escaped and stays text.

    make report RUN=NAME
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import report_lineage, report_paper, report_plots, report_tables
from pipeline.artifact import write_json
from pipeline.errors import ArtifactError
from pipeline.markdown import read_template
from pipeline.report_measures import METRICS, Measures, as_text, duration, with_interval
from pipeline.report_run import Curve, Run, StageRecord, read_run
from pipeline.report_samples import samples, visible


def write_report(run_dir: Path, plan_states: Mapping[str, str] | None = None) -> Path:
    """Writes `report.json` and `report.html` into `run_dir` and returns the path of the page.

    `plan_states` maps a stage to its state as the plan names it; without it the folders decide. Raises
    ArtifactError when there is no such run; a run that is unfinished or damaged gets a report that says so.
    """
    run = read_run(run_dir, plan_states)
    write_json(run_dir / "report.json", strict(as_json(run)))
    page = run_dir / "report.html"
    temporary = page.with_name(f".{page.name}.tmp")
    temporary.write_text(visible(read_template("report.html.j2").render(_page(run))), encoding="utf-8")
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
    """One sentence: held-out pass@1 of the first and the last model, or the first figure that there is where no
    reasoning was measured; honest where intervals overlap.
    """
    metric = next((name for name in METRICS if any(stage.value(name) for stage in run.evaluations)), None)
    if metric is None:
        return "No model has been measured yet."
    measured = [stage for stage in run.evaluations if stage.value(metric)]
    first, last = measured[0], measured[-1]
    what = f"Held-out {METRICS[metric].label.partition(':')[0]}"
    if first is last:
        value = with_interval(metric, first.metrics[metric])
        return f"{what} of {first.measured} is {value}; no other model has been measured yet."
    sentence = _change(what, metric, first, last, ("rose", "fell"))
    if first.value("mean_response_tokens") and last.value("mean_response_tokens"):
        sentence += "; " + _change("the mean response", "mean_response_tokens", first, last, ("grew", "shrank"))
    return sentence + "."


def _change(what: str, metric: str, first: StageRecord, last: StageRecord, verbs: tuple[str, str]) -> str:
    """`what` rose or fell from A to B; where the difference may be 0 it only went, and the sentence says why."""
    old, new = first.metrics[metric], last.metrics[metric]
    change = old.change_to(new)
    sign = change.sign if change else 0
    verb = {1: verbs[0], -1: verbs[1], 0: "went"}[sign]
    if METRICS[metric].share:
        values = f"from {with_interval(metric, old)} to {with_interval(metric, new)}"
    else:
        values = f"from {as_text(metric, old.value)} to {as_text(metric, new.value)} tokens"
    if sign:
        return f"{what} {verb} {values}"
    reason = "the 95 % interval of the difference holds 0" if change else "an interval is missing"
    return f"{what} {verb} {values} ({reason}, so this shows no change)"


def alarm_notes(run: Run) -> list[str]:
    """A sentence for every stage in which a reward model liked the responses better while they got worse."""
    notes = []
    for stage in run.stages:
        looks = [(step, value) for step, value in stage.curves.get("alarm/suspicious", []) if value is not None]
        if suspicious := [step for step, value in looks if value]:
            notes.append(
                f"{stage.name} may be hacking its reward model: in {len(suspicious)} of {len(looks)} looks, first "
                f"after step {suspicious[0]}, the model's score had risen while held-out pass@1 had fallen."
            )
    return notes


def rounding_notes(run: Run) -> list[str]:
    """A sentence for every model that training changed by so little that its weights cannot hold half of it."""
    found = [(stage.name, stage.value("merge_effect"), stage.value("merge_kept")) for stage in run.stages]
    return [
        f"{name} changed its model by so little ({effect.value:.1g} nats a token) that rounding kept {kept.value:.0%} "
        "of it in the saved weights: train longer, or at a higher rate."
        for name, effect, kept in found
        if effect and kept and (kept.value or 0) < 0.5 and effect.value
    ]


def comparison_notes(run: Run) -> list[str]:
    """A sentence for every evaluation that measured something else, or otherwise, than the first one did."""
    notes = []
    others = run.beside.evaluations if run.beside else []
    named = [(stage.name, stage) for stage in run.evaluations]
    named += [(f"{stage.name} of {run.beside.name}", stage) for stage in others if run.beside]
    known = [(name, stage) for name, stage in named if stage.manifest.fingerprint]
    for name, stage in known[1:]:
        if differing := _differences(_conditions(known[0][1]), _conditions(stage)):
            notes.append(f"{name} differs from {known[0][0]} in {', '.join(differing)}: compare them with care.")
    return notes


def _conditions(stage: StageRecord) -> dict[str, Any]:
    """Whatever the numbers of an evaluation depend on besides the model and the seed."""
    inputs = {field: parents for field, parents in stage.manifest.inputs.items() if field != "model"}
    return {**stage.manifest.settings, **inputs, "seed": None}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


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
        "notes": run.notes + alarm_notes(run) + rounding_notes(run) + comparison_notes(run),
        "stages": [_stage_json(stage) for stage in run.stages],
        "changes": report_tables.changes([*report_tables.steps_of(run), *report_tables.steps_beside(run)]),
        "beside": _beside_json(run),
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


def _beside_json(run: Run) -> dict[str, Any] | None:
    """The run shown beside: its name and what its models measure."""
    if run.beside is None:
        return None
    return {"run": run.beside.name, "models": {s.measured: _measures_json(s.metrics) for s in run.beside.evaluations}}


def _measures_json(measures: Measures) -> dict[str, Any]:
    return {name: {"value": m.value, "ci95": m.ci95, "n": m.n} for name, m in measures.items()}


def _lineage_json(stage: StageRecord) -> dict[str, Any]:
    facts = stage.manifest.model_dump(
        include={"fingerprint", "inputs", "cards", "git", "packages", "hardware", "started"}
    )
    return {"stage": stage.name, **facts}


def _cost_json(run: Run) -> dict[str, Any]:
    fields = {"seconds", "peak_memory_gib", "peak_gpu_memory_gib", "forecast"}
    stages = {
        s.name: s.manifest.model_dump(include=fields) | {"step_seconds": report_lineage.step_seconds(s)}
        for s in run.stages
        if s.manifest.seconds is not None
    }
    return {"total_seconds": sum(cost["seconds"] for cost in stages.values()), "stages": stages}


def _page(run: Run) -> dict[str, Any]:
    """Everything the template shows, by name."""
    columns = [*report_tables.columns_of(run), *report_tables.columns_beside(run)]
    rows = report_tables.metric_rows(columns)
    shown = {row["label"] for row in rows}
    return {
        "run": run,
        "duration": duration,
        "learned": learned(run),
        "notes": run.notes + alarm_notes(run) + rounding_notes(run) + comparison_notes(run),
        "generated": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "columns": columns,
        "rows": rows,
        # IFEval's four ways to count are one thing that was not measured.
        "not_measured": list(
            dict.fromkeys(m.label.partition(" by ")[0] for m in METRICS.values() if m.label not in shown)
        ),
        "domains": report_tables.tables_by_domain(columns),
        "steps": _steps(report_tables.steps_of(run)),
        "steps_beside": _steps(report_tables.steps_beside(run)),
        "curves": _drawn_curves(run),
        "source": run.source,
        "paper": report_paper,
        "samples": samples(run),
        "lineage": report_plots.draw_lineage(report_lineage.lineage_nodes(run)),
        "made": [stage for stage in run.stages if stage.manifest.fingerprint],
        "data_sets": report_lineage.data_sets(run),
        "reward_models": report_lineage.reward_models(run),
        "cards": report_lineage.cards(run),
        "packages": report_lineage.packages(run),
        "costs": report_lineage.cost_rows(run),
        "total": duration(sum(stage.manifest.seconds or 0 for stage in run.stages)),
    }


def _steps(steps: list[report_tables.Step]) -> dict[str, Any]:
    """A table of changes: its steps, its rows, and how they stand to the paper's."""
    return {
        "steps": steps,
        "rows": report_tables.change_rows(steps),
        "paired": any(change["paired"] for change in report_tables.changes(steps)),
        "verdicts": report_tables.verdicts(steps).most_common(),
    }


def _drawn_curves(run: Run) -> list[tuple[str, int, int, list[report_plots.Drawing]]]:
    """(stage, last step, window of the smooth line, drawings) for every stage with something to draw."""
    found = []
    for stage in run.stages:
        longest: Curve = max(stage.curves.values(), key=len, default=[])
        if drawings := report_plots.draw_curves(stage.curves, run.published):
            found.append((stage.name, longest[-1][0], report_plots.smoothing_window(len(longest)), drawings))
    return found
