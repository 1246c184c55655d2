"""Artifacts: a folder that is whole or not there.

Work happens in a partial folder. `publish` writes `manifest.json` last (with the size and sha256 of every file),
flushes everything to disk and renames the folder to its final name, so a folder with its final name is complete
even if the machine lost power a moment later. `seal` and `is_whole` do the same for a folder inside a stage
(a training checkpoint) without the rename.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.durable import MANIFEST, fsync, is_temporary, rename, whole_file
from pipeline.errors import ArtifactError

_log = logging.getLogger(__name__)

FORMAT = 1
SMALL = 2**20
"""Bytes of a file whose checksum is compared at every use; `make verify` compares those of all."""


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
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from None


def read_or_empty(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; an empty one when there is none that can be read."""
    try:
        found = read_json(path)
    except (ArtifactError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    with whole_file(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False, default=str)


def write_checked(path: Path, value: Any) -> None:
    """Writes JSON with its own checksum, for `read_checked`."""
    write_json(path, {"sha256": _json_sha256(value), "value": value})


def read_checked(path: Path) -> Any:
    """What `write_checked` wrote; None when it is not there, torn or changed (then with a word in the log)."""
    if not path.exists():
        return None
    with suppress(ArtifactError, KeyError, TypeError):
        found = read_json(path)
        if found["sha256"] == _json_sha256(found["value"]):
            return found["value"]
    _log.warning("%s is passed over: it is torn or has changed", path.name)
    return None


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seal(folder: Path, record: dict[str, Any] | None = None, scratch: Collection[str] = ()) -> None:
    """Flushes every file in `folder` and writes its manifest last: from now on `is_whole(folder)`.

    `scratch` names what lies in the folder and is no part of it.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.relative_to(folder).parts[0] not in scratch]
    files = {}
    for path in paths:
        if path.is_file() and is_temporary(path):
            path.unlink()
        elif path.is_file() and path != folder / MANIFEST:
            with suppress(OSError):  # not every file system has modes
                path.chmod(path.stat().st_mode | folder.stat().st_mode & 0o444)  # safetensors lets the owner read alone
            fsync(path)
            files[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": sha256(path)}
    for directory in [*(path for path in paths if path.is_dir()), folder]:
        fsync(directory)
    write_json(folder / MANIFEST, {"format": FORMAT, **(record or {}), "files": files})


def is_whole(folder: Path) -> bool:
    """True when `folder` was sealed and every file still has its recorded size and sha256."""
    try:
        return not damage(folder, deep=True)
    except (ArtifactError, OSError):
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a sealed folder; ArtifactError when it is missing, torn or no manifest of this version."""
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(map(_is_entry, files.values())):
        raise ArtifactError(f"{folder / MANIFEST} is damaged: it names no files")
    if manifest.get("format") != FORMAT:
        raise ArtifactError(f"{folder / MANIFEST} has format {manifest.get('format')}, this version reads {FORMAT}")
    return manifest


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)


def damage(folder: Path, deep: bool = False) -> list[str]:
    """What is wrong with a sealed folder, one phrase a file.

    Sizes are compared always; checksums of files up to SMALL bytes always, of all files when `deep`.
    """
    found = []
    for name, entry in read_manifest(folder)["files"].items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != entry["size"]:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {entry['size']}")
        elif (deep or entry["size"] <= SMALL) and sha256(path) != entry["sha256"]:
            found.append(f"{name} has changed (its sha256 differs)")
    return found


def step_of(checkpoint: Path) -> int:
    """The number of updates behind a folder called `checkpoint-STEP`."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints_in(folder: Path) -> list[Path]:
    """The folders called `checkpoint-STEP`, whole or torn, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=step_of)


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole `checkpoint-STEP` in `folder`, or None, and what is wrong with each that is newer."""
    torn: dict[Path, str] = {}
    for path in reversed(checkpoints_in(folder)):
        try:
            wrong = damage(path, deep=True)
        except ArtifactError as error:
            wrong = [error.message if (path / MANIFEST).exists() else "it was not finished"]
        if not wrong:
            return path, torn
        torn[path] = wrong[0]
    return None, torn


def publish(partial: Path, final: Path, record: dict[str, Any], scratch: Collection[str] = ()) -> Artifact:
    """Seals `partial` and renames it to `final`; `record` is the manifest without `files`.

    `scratch` (checkpoints and the like) goes only after the manifest is there, so that a kill in between costs
    nothing: `finish` does the rest.
    """
    seal(partial, record, scratch)
    return finish(partial, final, scratch)


def finish(partial: Path, final: Path, scratch: Collection[str] = ()) -> Artifact:
    """The end of `publish`, for a folder that is sealed already."""
    for path in map(partial.joinpath, scratch):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    rename(partial, final)
    return load(final)


def load(path: Path, deep: bool = False) -> Artifact:
    """The artifact in `path`; ArtifactError when it is not there, torn or changed (see `damage`)."""
    if not path.is_dir():
        raise ArtifactError(f"there is no artifact at {path}", hint="`make plan` shows which stages are done")
    manifest = read_manifest(path)
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
