"""Taking a run to another machine, finished or not: adapters, optimiser and data travel, merged weights do not.

`pack` writes one archive of a run's folder. Left out are weights that can be computed again from their base and the
adapter beside them, and all but the newest whole training checkpoint of a stage that is not done. `unpack` puts the
archive into `runs/` and merges again, the earliest stage first; then the same command goes on where it stopped.

Merging again on the same kind of processor gives the same bytes. Elsewhere a sum may round differently in its last
bit; the manifest then says so under `merged_again` and records the new checksum. What the weights rest on (the base,
another run named by `run:`) must be on the new machine.

    make pack RUN=r1-full-mini            make unpack FILE=r1-full-mini.tar.gz
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.artifact import checkpoints_in, damage, newest_checkpoint, read_json, sha256, write_json
from pipeline.durable import MANIFEST, rename, whole_file
from pipeline.errors import ArtifactError
from pipeline.provenance import hardware
from pipeline.recipe import build_stage
from pipeline.stage import Inputs
from pipeline.written import Written
from stages import STAGES

ADAPTER = "adapter/adapter_model.safetensors"
WEIGHTS = "model.safetensors"


def pack(run_dir: Path, archive: Path) -> Path:
    """Writes the run to `archive` (.tar.gz), whole or not at all; ArtifactError when there is no such run."""
    if not (run_dir / "recipe.json").is_file():
        raise ArtifactError(f"there is no run at {run_dir}", hint="name one with RUN=…")
    left_out = set(_left_out(run_dir))
    with (
        whole_file(archive, "wb") as file,
        tarfile.open(fileobj=file, mode="w:gz", compresslevel=1, dereference=True) as tar,
    ):
        for path in sorted(run_dir.rglob("*")):
            inside = path.relative_to(run_dir)
            if path.is_file() and not inside.parts[0].startswith(".") and not left_out & {path, *path.parents}:
                tar.add(path, Path(run_dir.name, inside))
    return archive


def _left_out(run_dir: Path) -> Iterator[Path]:
    """Weights that can be merged again, and old training checkpoints."""
    for folder in run_dir.iterdir():
        if (folder / MANIFEST).is_file() and (folder / ADAPTER).is_file():
            yield folder / WEIGHTS
        if (checkpoints := folder / "checkpoints").is_dir():
            newest, _ = newest_checkpoint(checkpoints)
            yield from (path for path in checkpoints_in(checkpoints) if path != newest)


def unpack(archive: Path, runs: Path) -> Path:
    """Puts a packed run into `runs` and makes its merged weights again; returns the run's folder.

    Raises ArtifactError for a file that is no packed run, for one that was changed, and where a run of that name is
    there already. The run appears when it is whole.
    """
    run = _name_of(archive)
    target = runs / run
    if target.exists():
        raise ArtifactError(f"there is a run at {target} already", hint="move it away first; nothing was changed")
    runs.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=runs, prefix=".unpacking-") as scratch:
        with _opened(archive) as tar:
            tar.extractall(scratch, filter="data")  # no path leads out of the folder
        arrived = Path(scratch, run)
        for name, settings in _stages_of(arrived).items():
            folder = arrived / name
            if (folder / MANIFEST).is_file() and (folder / ADAPTER).is_file() and not (folder / WEIGHTS).is_file():
                _merge_again(folder, dict(settings))
        rename(arrived, target)
    return target


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, FileNotFoundError, IsADirectoryError) as error:
        why = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{archive} is no packed run: {why}", hint="make one with `make pack RUN=…`") from None


def _name_of(archive: Path) -> str:
    """The one folder that the archive holds; no links, which could lead out of it."""
    with _opened(archive) as tar:
        tops = {part for name in tar.getnames() for part in Path(name).parts[:1]}
        others = [member.name for member in tar if not (member.isfile() or member.isdir())]
    if others:
        raise ArtifactError(f"{archive} is no packed run: {others[0]} is a link or a device")
    if len(tops) != 1 or not re.fullmatch(r"\w[\w.-]*", name := tops.pop()):
        raise ArtifactError(f"{archive} is no packed run: it does not hold one folder")
    return name


def _stages_of(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Name -> settings of the stages of a run that came from elsewhere; no name leads out of the run's folder."""
    with suppress(ValueError, LookupError, TypeError):
        stages = Written.model_validate(read_json(run_dir / "recipe.json")).stages
        if stages and all(settings["kind"] in STAGES for settings in stages.values()):
            return stages
    raise ArtifactError("recipe.json of the packed run does not name its stages", hint="pack it again with `make pack`")


def _merge_again(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the merged weights of a finished stage, and records their checksum."""
    if wrong := [phrase for phrase in damage(folder, deep=True) if not phrase.startswith(WEIGHTS)]:
        raise ArtifactError(f"stage {folder.name} of the packed run is damaged: {'; '.join(wrong[:3])}")
    from stages.engines.merging import merge_again  # imports torch

    stage = build_stage(folder.name, settings.pop("kind"), settings)
    merge_again(Inputs(stage, folder.parent).checkpoint("model"), folder, settings.get("quantization"))
    manifest = read_json(folder / MANIFEST)
    before, found = manifest["files"][WEIGHTS], _entry(folder / WEIGHTS)
    manifest["files"][WEIGHTS] = found
    if found != before:
        manifest["merged_again"] = {"on": hardware(), "sha256_before": before["sha256"]}
    write_json(folder / MANIFEST, manifest)


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}
