"""Artifacts: a folder that is whole or not there.

Work happens in a partial folder. `publish` writes `manifest.json` last (with the size and sha256 of every file),
flushes everything to disk and renames the folder to its final name, so a folder with its final name is complete
even if the machine lost power a moment later. `seal` and `is_whole` do the same for a folder inside a stage
(a training checkpoint) without the rename.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """A published folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        """`checkpoint`, `dataset` or `metrics`."""
        return str(self.manifest["artifact"])

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])


def read_json(path: Path) -> Any:
    """The JSON in `path`; an ArtifactError when it is missing or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing") from None
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}") from None


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all: temporary file, flush, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, default=str)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _fsync(path.parent)


def seal(folder: Path, record: dict[str, Any] | None = None) -> None:
    """Flushes every file in `folder` and writes its manifest last: from now on `is_whole(folder)`."""
    files = {}
    for path in _files(folder):
        _fsync(path)
        files[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": sha256(path)}
    for directory in {path.parent for path in _files(folder)}:
        _fsync(directory)
    write_json(folder / MANIFEST, {"format": FORMAT, **(record or {}), "files": files})


def is_whole(folder: Path) -> bool:
    """True when `folder` was sealed and every file still has its recorded size and sha256."""
    try:
        return not damage(folder, deep=True)
    except ArtifactError:
        return False


def damage(folder: Path, deep: bool = False) -> list[str]:
    """What is wrong with a sealed folder, one phrase a file; sizes always, checksums when `deep`."""
    found = []
    for name, entry in read_json(folder / MANIFEST).get("files", {}).items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != entry["size"]:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {entry['size']}")
        elif deep and sha256(path) != entry["sha256"]:
            found.append(f"{name} has changed (its sha256 differs)")
    return found


def step_of(checkpoint: Path) -> int:
    """The number of updates behind a folder called `checkpoint-STEP`."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders called `checkpoint-STEP`, whole or torn, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole `checkpoint-STEP` in `folder`, where a stage keeps what it can resume from."""
    return next((path for path in reversed(checkpoints_in(folder)) if is_whole(path)), None)


def publish(partial: Path, final: Path, record: dict[str, Any]) -> Artifact:
    """Seals `partial` and renames it to `final`; `record` is the manifest without `files`."""
    seal(partial, record)
    partial.rename(final)
    _fsync(final.parent)
    return load(final)


def load(path: Path, deep: bool = False) -> Artifact:
    """The artifact in `path`; ArtifactError when it is not there, torn or changed."""
    if not path.is_dir():
        raise ArtifactError(f"there is no artifact at {path}", hint="`make plan` shows which stages are done")
    manifest = read_json(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ArtifactError(f"{path / MANIFEST} has format {manifest.get('format')}, this version reads {FORMAT}")
    if wrong := damage(path, deep):
        raise ArtifactError(
            f"{path} is damaged: {'; '.join(wrong[:3])}",
            hint=f"make it again with REBUILD={path.name} (the damaged folder is kept aside)",
        )
    return Artifact(path, manifest)


def set_aside(path: Path) -> Path:
    """Moves a folder out of the way without deleting it; returns where it went."""
    number = 1
    while (target := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    path.rename(target)
    return target


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_room(folder: Path, needed_bytes: int) -> None:
    """An ArtifactError when the disk below `folder` has less than `needed_bytes` left."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ArtifactError(
            f"the disk of {folder} has {free / 2**20:.0f} MiB free, {needed_bytes / 2**20:.0f} MiB are needed",
            hint="free some space, or keep the runs on another disk with R1_RUNS=FOLDER",
        )


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
