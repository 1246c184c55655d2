"""The plan: for every stage of a recipe, what a run would do and why. Reads manifests, runs nothing."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifact import MANIFEST, damage, is_whole, newest_checkpoint, read_json, read_manifest, step_of
from pipeline.errors import ArtifactError, StaleError
from pipeline.fingerprints import identity
from pipeline.provenance import cards_used
from pipeline.recipe import Recipe
from pipeline.stage import Stage

DONE, RESUME, TO_DO, STALE, DAMAGED = "done", "resume", "to do", "stale", "damaged"
STAMP = "stamp.json"


@dataclass(frozen=True)
class Line:
    """One stage of the plan; `detail` says where it resumes, what differs or what is broken."""

    stage: str
    kind: str
    state: str
    detail: str = ""
    seconds: float | None = None


def make_plan(recipe: Recipe) -> list[Line]:
    """A line per stage, in order."""
    return [_line(recipe, name) for name in recipe.stages]


def _line(recipe: Recipe, name: str) -> Line:
    kind, folder = recipe.stages[name].kind, recipe.folder / name
    try:
        if folder.exists() and not folder.is_dir():
            return Line(name, kind, DAMAGED, "it is a file, where its folder should be")
        if folder.is_dir():
            manifest = read_manifest(folder)
            if wrong := damage(folder):
                return Line(name, kind, DAMAGED, "; ".join(wrong[:3]))
            if difference := _difference(recipe, name, manifest):
                return Line(name, kind, STALE, difference)
            return Line(name, kind, DONE, seconds=manifest.get("seconds"))
        if (partial := partial_folder(recipe.folder, name)).is_dir():
            if difference := _difference(recipe, name, read_stamp(partial)):
                return Line(name, kind, TO_DO, f"its unfinished work is for other settings: {difference}")
            return Line(name, kind, RESUME, _resume_point(partial))
    except ArtifactError as error:
        return Line(name, kind, DAMAGED if folder.is_dir() else TO_DO, error.message)
    return Line(name, kind, TO_DO)


def partial_folder(run_dir: Path, stage: str) -> Path:
    """Where a stage works until its artifact is whole."""
    return run_dir / f"{stage}.partial"


def read_stamp(partial: Path) -> dict[str, Any]:
    """What a partial folder is to become; ArtifactError when it does not say."""
    is_named = (partial / STAMP).exists()  # else it was killed while it got its final name: the manifest has it too
    stamp = read_json(partial / (STAMP if is_named else MANIFEST))
    return stamp if isinstance(stamp, dict) else {}


def _resume_point(partial: Path) -> str:
    if is_whole(partial):
        return "at its end: only its name is missing"
    found, torn = newest_checkpoint(partial / "checkpoints")
    passed_over = "".join(f", passing over {path.name}: {why}" for path, why in torn.items())
    return (f"at step {step_of(found)}" if found else "from its start") + passed_over


def record_of(recipe: Recipe, name: str) -> dict[str, Any]:
    """What identifies a stage's result: kept in its stamp while it works and in its manifest for good."""
    stage = recipe.stages[name]
    inputs: dict[str, list[dict[str, str]]] = {}
    for field, ref in stage.references():
        entry = {"ref": str(ref)}
        if ref.scheme in ("stage", "run"):
            entry["fingerprint"] = identity(ref, recipe.fingerprints)
        inputs.setdefault(field, []).append(entry)
    return {
        "artifact": stage.makes,
        "stage": name,
        "kind": stage.kind,
        "version": stage.version,
        "fingerprint": recipe.fingerprints[name],
        "settings": stage.settings(),
        "inputs": inputs,
    }


def _difference(recipe: Recipe, name: str, old: dict[str, Any]) -> str:
    """Why a finished stage is not the one asked for: `learning_rate 1e-05 -> 2e-05`; empty when it is."""
    new = record_of(recipe, name)
    if old.get("fingerprint") == new["fingerprint"]:
        return ""
    changes = [
        f"{key} {_short(was)} → {_short(now)}"
        for key, was, now in _changes(old.get("settings", {}), new["settings"])
        + [_without_common(change) for change in _changes(old.get("inputs", {}), new["inputs"])]
        + _other_data(recipe.stages[name], old)
    ]
    if old.get("version") != new["version"]:
        changes.insert(0, f"version of {new['kind']} {old.get('version')} → {new['version']}")
    return ", ".join(changes) or "the content of an input changed"


def _other_data(stage: Stage, old: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The cards whose data are not those that the finished stage read; its manifest has their revisions."""
    read = {used.get("name"): used.get("revision") for used in old.get("cards", [])}
    return [
        (f"data of card {used['name']}", read[used["name"]], used["revision"])
        for used in cards_used(stage)
        if read.get(used["name"], used["revision"]) != used["revision"]
    ]


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += _changes(was, now, f"{prefix}{key}.")
        elif was != now:
            found.append((prefix + key, was, now))
    return found


def _without_common(change: tuple[str, Any, Any]) -> tuple[str, Any, Any]:
    """Of two lists of references, those that are not in both; both lists where only the order differs."""
    field, was, now = change
    if not isinstance(was, list) or not isinstance(now, list):
        return change
    gone, new = [ref for ref in was if ref not in now], [ref for ref in now if ref not in was]
    return (field, gone, new) if gone or new else change


def _short(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(v, dict) and "ref" in v for v in value):
        return ", ".join(f"{v['ref']} ({_short_fingerprint(v)})".replace(" ()", "") for v in value)
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 60 else text[:57] + "…"


def _short_fingerprint(parent: dict[str, str]) -> str:
    """Eight digits, or `missing`."""
    return parent.get("fingerprint", "").partition(":")[0][:8]


def require_fresh(lines: Iterable[Line], run: str) -> None:
    """A StaleError when a finished stage is not what is asked, or damaged: never reused, never deleted."""
    for line in lines:
        if line.state in (STALE, DAMAGED):
            raise StaleError(
                f"stage {line.stage} of run '{run}' is {line.state}: {line.detail}",
                hint=f"REBUILD={line.stage} makes it and what rests on it again, RUN=another-name starts beside it",
            )
