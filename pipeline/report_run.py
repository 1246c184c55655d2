"""Reads a run for the report: recipe, manifests, measurements and training curves, as far as they exist.

Reads `runs/RUN/recipe.json` and in every stage's folder (`STAGE/`, or `STAGE.partial/` while it is made)
`manifest.json`, `metrics.json`, `by_domain.json`, `by_problem.json`, `metrics.jsonl`, `progress.json` and
`error.json`. Writes nothing. A run may be unfinished, cut off or damaged: what cannot be read is left out and
becomes a sentence in `Run.notes`, because a report that fails tells less than one with a gap. Curves are shown from
any folder, measurements only from a whole artifact. Command: `make report RUN=NAME`.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from pipeline.artifact import MANIFEST, damage, read_json, read_or_empty
from pipeline.errors import ArtifactError
from pipeline.report_measures import Measure, Measures, finite
from pipeline.stage import read_jsonl
from pipeline.written import Published

RUNNING_WITHIN_S = 120.0  # a partial folder whose progress is older than this counts as cut off

Curve = list[tuple[int, float | None]]


Number = Annotated[float | None, BeforeValidator(finite)]


class _View(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Parent(_View):
    ref: str
    fingerprint: str | None = None


class CardUse(_View):
    name: str
    revision: str | int | None = None
    licence: str | list[str] | None = None


class Hardware(_View):
    cpu: str | None = None
    cores: Number = None
    memory_gib: Number = None
    gpu: str | None = None


class Git(_View):
    commit: str | None = None
    dirty: bool | None = None


class FileEntry(_View):
    size: int
    sha256: str


class Forecast(_View):
    """What was expected before anything was loaded (`stages/forecast.py`)."""

    peak_gib: Number = None
    seconds_per_step: Number = None


class Manifest(_View):
    """The part of `manifest.json` that the report shows."""

    artifact: str = ""
    kind: str = ""
    fingerprint: str = ""
    settings: dict[str, Any] = {}
    inputs: dict[str, list[Parent]] = {}
    cards: list[CardUse] = []
    git: Git = Git()
    packages: dict[str, str | None] = {}
    hardware: Hardware = Hardware()
    started: str = ""
    seconds: Number = None
    peak_memory_gib: Number = None
    peak_gpu_memory_gib: Number = None
    forecast: Forecast = Forecast()
    metrics: dict[str, Any] = {}
    files: dict[str, FileEntry] = {}


class ByProblem(_View):
    """`by_problem.json`: key of each problem -> its domain, and each figure's values in the order of the problems."""

    problems: dict[str, str] = {}
    figures: dict[str, list[Number]] = {}

    def values(self, figure: str, domain: str | None = None) -> dict[str, float]:
        """Key -> value of every problem (of `domain`) that has one; nothing where the lists are unlike."""
        values = self.figures.get(figure, [])
        if len(values) != len(self.problems):
            return {}
        found = zip(self.problems.items(), values, strict=True)
        return {key: v for (key, of), v in found if v is not None and domain in (None, of)}


@dataclass(frozen=True)
class StageRecord:
    """One stage of the recipe and whatever it has left on disk."""

    name: str
    kind: str
    state: str
    folder: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    manifest: Manifest = field(default_factory=Manifest)
    metrics: Measures = field(default_factory=dict)
    by_domain: dict[str, Measures] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def model(self) -> str | None:
        """The reference of the model that goes in, e.g. `stage:cold_start`."""
        parents = self.manifest.inputs.get("model", [])
        named = self.settings.get("model") or (parents[0].ref if parents else None)
        return str(named) if named else None

    @property
    def measured(self) -> str:
        """The name of the model that an evaluation measures: `eval_r1_zero` -> `r1_zero`."""
        return self.name.removeprefix("eval_")

    def value(self, metric: str) -> Measure | None:
        """The measure called `metric` when it has a value."""
        found = self.metrics.get(metric)
        return found if found and found.value is not None else None


@dataclass(frozen=True)
class Run:
    """A run as the report sees it; `stages` in the order of the recipe."""

    path: Path
    recipe: str
    scale: str
    name: str
    seed: int | None
    description: str
    stages: list[StageRecord]
    notes: list[str]
    beside: "Run | None" = None
    """The run whose measurements are shown beside this one's, as its recipe names it."""
    published: Mapping[str, Curve] = field(default_factory=dict)
    """Metric -> points that others have published, as the recipe names them."""
    source: str = ""
    """Where they stand."""

    @property
    def evaluations(self) -> list[StageRecord]:
        """The stages that have measured a model, in order."""
        return [stage for stage in self.stages if stage.kind == "evaluate" and stage.metrics]

    def evaluation_of(self, model: str | None) -> StageRecord | None:
        """The first evaluation of the model behind a reference such as `stage:r1_zero`."""
        return next((stage for stage in self.evaluations if model and stage.model == model), None)


def read_run(run_dir: Path, plan_states: Mapping[str, str] | None = None) -> Run:
    """Everything the report needs from `run_dir`; ArtifactError when there is no such folder.

    `plan_states` (stage -> state, as `make plan` prints them) wins over what the folders look like.
    """
    run = _read_one(run_dir, plan_states)
    named = read_or_empty(run_dir / "recipe.json").get("beside")
    if not named:
        return run
    try:
        return replace(run, beside=_read_one(run_dir.parent / str(named)))
    except ArtifactError:
        run.notes.append(f"The run {named}, to be shown beside this one, is not there yet.")
        return run


def _read_one(run_dir: Path, plan_states: Mapping[str, str] | None = None) -> Run:
    if not run_dir.is_dir():
        raise ArtifactError(f"there is no run at {run_dir}", hint="`make plan` shows what a recipe would do")
    notes: list[str] = []
    recipe = _read_object(run_dir / "recipe.json", notes) or {}
    planned = recipe.get("stages")
    if not isinstance(planned, dict):
        notes.append(f"{run_dir / 'recipe.json'} names no stages: the stages are the folders that were found.")
        planned = _found_stages(run_dir)
    stages = [
        _read_taken(run_dir, name, settings, notes)
        if "taken" in settings
        else _read_stage(run_dir, name, settings, (plan_states or {}).get(name), notes)
        for name, settings in planned.items()
        if isinstance(settings, dict)
    ]
    seed, published = recipe.get("seed"), _published(recipe.get("published"), notes)
    return Run(
        path=run_dir,
        recipe=str(recipe.get("recipe") or "unknown recipe"),
        scale=str(recipe.get("scale") or "unknown scale"),
        name=str(recipe.get("run") or run_dir.name),
        seed=seed if isinstance(seed, int) else None,
        description=str(recipe.get("description") or ""),
        stages=stages,
        notes=notes,
        published={metric: sorted(points.items()) for metric, points in published.curves.items()},
        source=published.source,
    )


def _published(raw: Any, notes: list[str]) -> Published:
    nothing = Published(source="", curves={})
    try:
        return Published.model_validate(raw) if raw else nothing
    except ValidationError:
        notes.append("recipe.json does not say what others have published as points by step: they are not drawn.")
        return nothing


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSON-lines file; none when there is no such file."""
    if not path.is_file():
        return []
    return [row for row in read_jsonl(path) if isinstance(row, dict)]


def _read_stage(
    run_dir: Path, name: str, settings: Mapping[str, Any], planned: str | None, notes: list[str]
) -> StageRecord:
    final, partial = run_dir / name, run_dir / f"{name}.partial"
    folder = final if final.is_dir() else partial if partial.is_dir() else None
    manifest = _read_manifest(final, notes) if folder == final else None
    state = "to do" if folder is None else "done" if manifest else "damaged"
    if folder == partial:
        state = _partial_state(partial, notes)
    if planned and planned.startswith("stale"):
        notes.append(f"{name} is {planned}: its numbers belong to the older settings.")
    headline = manifest.metrics if manifest else {}
    metrics = (_read_object(final / "metrics.json", notes) if manifest else None) or headline
    by_domain = (_read_object(final / "by_domain.json", notes) if manifest else None) or {}
    problems = _read_by_problem(final, notes) if manifest else ByProblem()
    return StageRecord(
        name=name,
        kind=str(settings.get("kind") or "unknown"),
        state=planned or state,
        folder=folder,
        settings=settings,
        manifest=manifest or Manifest(),
        metrics=_measures(metrics, problems),
        by_domain={domain: _measures(values, problems, domain) for domain, values in by_domain.items()},
        curves=_curves(read_rows(folder / "metrics.jsonl")) if folder else {},
    )


def _read_taken(run_dir: Path, name: str, settings: Mapping[str, Any], notes: list[str]) -> StageRecord:
    """A stage that another run made, under the name it has in this one."""
    other = run_dir.parent / str(settings["taken"]).removeprefix("run:")
    found = _read_stage(other.parent, other.name, settings, None, notes)
    return replace(found, name=name, state=f"{found.state}, {settings['taken']}")


def _measures(raw: Any, problems: ByProblem, domain: str | None = None) -> Measures:
    if not isinstance(raw, dict):
        return {}
    return {name: Measure.read(value, problems.values(name, domain)) for name, value in raw.items()}


def _read_by_problem(folder: Path, notes: list[str]) -> ByProblem:
    """Empty when there is no such file, as in older evaluations; empty, and a note, when it holds something else."""
    path = folder / "by_problem.json"
    try:
        return ByProblem.model_validate(_read_object(path, notes) or {})
    except ValidationError:
        notes.append(f"{path} does not hold values by problem: changes are told without it.")
        return ByProblem()


def _curves(rows: list[dict[str, Any]]) -> dict[str, Curve]:
    """Metric -> its points by step; a step that was logged twice (after a resume) counts as logged last."""
    points: dict[str, dict[int, float | None]] = {}
    for row in rows:
        step = finite(row.get("step"))
        for metric, value in row.items() if step is not None else ():
            if metric != "step" and (isinstance(value, int | float) or value is None):
                points.setdefault(metric, {})[int(step)] = finite(value)  # type: ignore[arg-type]
    return {metric: sorted(steps.items()) for metric, steps in points.items()}


def _read_manifest(folder: Path, notes: list[str]) -> Manifest | None:
    """The manifest of a finished stage; None, and a note, when it or the folder is damaged."""
    try:
        manifest = Manifest.model_validate(read_json(folder / MANIFEST))
    except ArtifactError as error:
        notes.append(f"The stage {folder.name} cannot be trusted: {error.message}.")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        notes.append(f"{folder / MANIFEST} is not a manifest: {where}: {first['msg']}.")
    else:
        wrong = damage(folder) if manifest.files else []
        if not wrong:
            return manifest
        notes.append(f"The stage {folder.name} is damaged: {'; '.join(wrong[:3])}.")
    return None


def _read_object(path: Path, notes: list[str]) -> dict[str, Any] | None:
    """A JSON object, None when the file is missing; a note when it is not one."""
    if not path.is_file():
        return None
    try:
        value = read_json(path)
    except ArtifactError as error:
        notes.append(f"{error.message}.")
        return None
    if isinstance(value, dict):
        return value
    notes.append(f"{path} is damaged: it holds no JSON object.")
    return None


def _partial_state(partial: Path, notes: list[str]) -> str:
    """`running`, `cut off` or `failed`, and at which step; a failure's message becomes a note."""
    progress = read_or_empty(partial / "progress.json")
    error = read_or_empty(partial / "error.json")
    step, total = finite(progress.get("step")), finite(progress.get("total"))
    where = "" if step is None or total is None else f"step {step:.0f} of {total:.0f}"
    if error and error.get("type") != "Interrupted":
        notes.append(f"{partial.stem} failed: {error.get('message')} (next: {error.get('hint') or 'run it again'})")
        return f"failed at {where}" if where else "failed"
    if not error and _touched_lately(partial):
        return f"running, {where}" if where else "running"
    return f"cut off at {where}" if where else "cut off"


def _touched_lately(partial: Path) -> bool:
    signs = [partial / "progress.json", partial / "metrics.jsonl", partial]
    newest = max(path.stat().st_mtime for path in signs if path.exists())
    return time.time() - newest < RUNNING_WITHIN_S


def _found_stages(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The stages of a run without a recipe: its artifacts, the earliest first."""
    found = []
    for path in sorted(run_dir.iterdir()):
        if (path / MANIFEST).is_file() and "." not in path.name:
            manifest = _read_manifest(path, []) or Manifest()
            found.append((manifest.started, path.name, manifest.kind))
    return {name: {"kind": kind} for _, name, kind in sorted(found)}
