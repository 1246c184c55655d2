"""Fingerprints: the names of results, computed from the configuration alone.

A stage's fingerprint comes from its kind, version, settings and what its references stand for (`Stage.fingerprint`).
`plan.py` compares it with the manifest of what lies in the run's folder.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pipeline import card
from pipeline.artifact import MANIFEST, load, read_json
from pipeline.errors import ArtifactError
from pipeline.places import ROOT, runs_folder
from pipeline.refs import Ref
from pipeline.stage import Stage, path_identity

MISSING = "missing:"  # stands in a fingerprint for content that is not there yet


def fingerprints(stages: Mapping[str, Stage], run_dir: Path) -> dict[str, str]:
    """Stage name -> fingerprint, from the configuration alone.

    Only where a `run:` reference leads nowhere (that run was moved or deleted) does the finished stage in `run_dir`
    say what stood there: what is gone is no reason to make it again.
    """
    found: dict[str, str] = {}
    for name, stage in stages.items():
        identities: dict[str, list[str]] = {}
        for field_name, ref in stage.references():
            now = identity(ref, found)
            if ref.scheme == "run" and now.startswith(MISSING):
                now = _recorded(run_dir / name, field_name, ref) or now
            identities.setdefault(field_name, []).append(now)
        found[name] = stage.fingerprint(identities)
    return found


def _recorded(folder: Path, field_name: str, ref: Ref) -> str | None:
    """The fingerprint behind a reference when the finished stage in `folder` was made; None when it is not known."""
    try:
        parents = read_json(folder / MANIFEST)["inputs"][field_name]
        return next(parent.get("fingerprint") for parent in parents if parent["ref"] == str(ref))
    except (ArtifactError, KeyError, TypeError, AttributeError, StopIteration):
        return None


def identity(ref: Ref, known: Mapping[str, str]) -> str:
    """What a reference contributes to a fingerprint: the content it stands for, as far as it can be known now."""
    if ref.scheme == "stage":
        return known[ref.target]
    if ref.scheme == "run":
        folder = runs_folder() / ref.target
        return load(folder).fingerprint if folder.is_dir() else f"{MISSING}{ref.target}"
    if ref.scheme == "card":
        return _card_identity(ref.target)
    return _path_identity(ref.target) if ref.scheme == "path" else str(ref)


def _card_identity(target: str) -> str:
    name, config, split = card.parse_card_ref(target)
    return f"{card.load_card(name).fingerprint}:{config or ''}/{split or ''}"


@cache
def _path_identity(target: str) -> str:
    folder = ROOT / target
    return path_identity(folder) if folder.is_dir() else f"{MISSING}{target}"
