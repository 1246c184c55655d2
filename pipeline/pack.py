"""Taking a run to another machine, finished or not: adapters, optimiser and data travel, merged weights do not.

`pack` writes one archive of a run's folder. Left out are weights that can be computed again from their base and the
adapter beside them, and all but the newest whole training checkpoint of a stage that is not done. `unpack` puts the
archive into `runs/` and merges again, the earliest stage first; then the same command goes on where it stopped. Both
look at every byte of the finished stages, as `make verify` does, and refuse damage that merging again does not mend.

The run may be at work meanwhile. What is packed is the run of one moment: finished files and the checkpoint do not
change, and are held open, so that they can be read after the run has deleted or renamed them; of files that still
grow a copy is made first. The checkpoint comes before the curves, so these reach at least as far; a resume cuts them.

Merging again on the same kind of processor gives the same bytes. Elsewhere a sum may round differently in its last
bit; the manifest then says so under `merged_again` and records the new checksum. What the weights rest on (the base,
another run named by `run:`) must be on the new machine.

    make pack RUN=r1-full-mini            make unpack FILE=r1-full-mini.tar.gz
"""

import gzip
import logging
import os
import re
import resource
import shutil
import tarfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

from pipeline.artifact import checkpoints_in, newest_checkpoint, read_json, read_manifest, sha256, write_json
from pipeline.durable import MANIFEST, is_temporary, rename, whole_file
from pipeline.errors import ArtifactError, ResourceError
from pipeline.lock import RETRY_S, pack_lock
from pipeline.provenance import hardware
from pipeline.recipe import build_stage
from pipeline.stage import Inputs, locate
from pipeline.verify import Verified, mend, stages_named, verify
from pipeline.written import Written
from stages import STAGES

ADAPTER = "adapter/adapter_model.safetensors"
WEIGHTS = "model.safetensors"
TRIES = 20
_IN_CHECKPOINT = re.compile(r"checkpoints/checkpoint-\d+/")


def pack(run_dir: Path, archive: Path) -> Path:
    """Writes the run to `archive` (.tar.gz), whole or not at all; ArtifactError when it is not there or damaged."""
    stages_named(run_dir)  # or it could not be unpacked
    _require_writable(archive)
    with pack_lock(run_dir), ExitStack() as held:
        file = _begun(archive, held)
        files, damaged = _at_one_moment(run_dir, archive.parent, held)
        if damaged:
            raise ArtifactError(f"run '{run_dir.name}' is damaged in {_told(damaged)}", mend(damaged[0].stage))
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1, dereference=True) as tar:
            for path, content in files.items():
                inside = Path(run_dir.name, path.relative_to(run_dir))
                tar.addfile(tar.gettarinfo(arcname=str(inside), fileobj=content), content)
    return archive


def _require_writable(archive: Path) -> None:
    """ArtifactError where no archive can come to be, or would take the place of a device."""
    wrong = ""
    if archive.is_dir():
        wrong = f"{archive} is a folder"
    elif not archive.parent.is_dir():
        wrong = f"there is no folder {archive.parent} for the archive"
    elif archive.exists() and not archive.is_file():
        wrong = f"{archive} is there and is no regular file"
    if wrong:
        raise ArtifactError(wrong, hint="name a file in a folder that is there: FILE=…")


def _begun(archive: Path, held: ExitStack) -> IO[bytes]:
    """The archive to write into; a ResourceError where the system refuses."""
    try:
        return held.enter_context(whole_file(archive, "wb"))
    except OSError as error:
        hint = "name a file in a folder that you may write to: FILE=…"
        raise ResourceError(f"{archive} cannot be written: {error.strerror}", hint) from None


def _at_one_moment(run_dir: Path, room: Path, held: ExitStack) -> tuple[dict[Path, IO[bytes]], list[Verified]]:
    """Every file to pack, open, and the damaged stages; begins again when the run has moved one meanwhile."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a data set may have thousands of shards
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for _ in range(TRIES):
        with ExitStack() as attempt, suppress(FileNotFoundError, ArtifactError):
            before, damaged = _folders(run_dir), _damaged(run_dir, verify(run_dir))
            files = {path: attempt.enter_context(_open(path, fixed, room)) for path, fixed in _to_pack(run_dir)}
            if _folders(run_dir) == before:
                held.enter_context(attempt.pop_all())
                return files, damaged
        time.sleep(RETRY_S)
    raise ResourceError(f"run '{run_dir.name}' changed {TRIES} times while it was packed", hint="pack it again")


def _folders(run_dir: Path) -> set[tuple[str, int]]:
    """The folders of a run and what tells one from another of the same name."""
    return {(path.name, path.stat().st_ino) for path in run_dir.iterdir() if path.is_dir()}


def _damaged(run_dir: Path, found: Iterable[Verified]) -> list[Verified]:
    """Those of the finished stages with damage that is not mended by merging their weights again."""
    left = [one._replace(damage=_not_mended(run_dir / one.stage, one.damage)) for one in found]
    return [one for one in left if one.damage]


def _not_mended(folder: Path, damage: list[str]) -> list[str]:
    has_adapter = (folder / ADAPTER).is_file()
    return [phrase for phrase in damage if not (has_adapter and phrase.startswith(f"{WEIGHTS} "))]


def _told(damaged: list[Verified]) -> str:
    """`eval_base (metrics.json is missing), r1_zero (…)`."""
    return ", ".join(f"{one.stage} ({'; '.join(one.damage[:3])})" for one in damaged)


@contextmanager
def _open(path: Path, is_fixed: bool, room: Path) -> Iterator[IO[bytes]]:
    """The file, or where it may still change a copy in `room` that has no name: nothing of it can stay there."""
    with path.open("rb") as file, nullcontext(file) if is_fixed else TemporaryFile(dir=room) as held:
        if not is_fixed:
            os.fchmod(held.fileno(), os.fstat(file.fileno()).st_mode)
            shutil.copyfileobj(file, held)
            held.seek(0)
            file.close()  # for the system counts open files
        yield held


def _to_pack(run_dir: Path) -> Iterator[tuple[Path, bool]]:
    """What is packed, and whether it stays as it is; each file must be opened before the next is asked for."""
    for path in sorted(run_dir.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            yield from _of_folder(path)
        elif path.is_file() and not path.name.startswith("."):
            yield path, False


def _of_folder(folder: Path) -> Iterator[tuple[Path, bool]]:
    """The same of the folder of a stage, its newest whole checkpoint first."""
    for path in _newest_files(folder / "checkpoints"):
        yield path, True
    is_sealed = (folder / MANIFEST).is_file()  # checkpoints go after that: asked before, it could have neither
    is_final = is_sealed and "." not in folder.name
    is_half_written = not is_sealed and folder.suffix == ".partial"
    is_made_again = (folder / ADAPTER).is_file() if is_final else is_half_written
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        left_out = _IN_CHECKPOINT.match(inside) or (is_made_again and inside == WEIGHTS)
        if path.is_file() and not is_temporary(path) and not left_out:
            yield path, is_sealed


def _newest_files(checkpoints: Path) -> list[Path]:
    """The files of the newest whole checkpoint; FileNotFoundError when all there were went while it looked."""
    newest, torn = newest_checkpoint(checkpoints)
    if newest:
        return [newest / MANIFEST, *map(newest.joinpath, read_manifest(newest)["files"])]
    if set(torn) != set(checkpoints_in(checkpoints)):
        raise FileNotFoundError(checkpoints)
    return []


def unpack(archive: Path, runs: Path) -> Path:
    """Puts a packed run into `runs` and makes its merged weights again; returns the run's folder.

    Raises ArtifactError for a file that is no packed run, for one that was changed, where a run of that name is there
    already, and where it rests on another run that is not. The run appears when it is whole.
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
        stages, found = _stages_of(arrived), list(verify(arrived))
        if damaged := _damaged(arrived, found):
            hint = "pack it again where it was made; nothing was changed here"
            raise ArtifactError(f"the packed run {archive} is damaged in {_told(damaged)}", hint)
        for one in found:
            if one.damage:
                _merge_again(arrived / one.stage, dict(stages[one.stage]))
        rename(arrived, target)
    return target


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, FileNotFoundError, IsADirectoryError) as error:
        why = getattr(error, "strerror", None) or str(error).partition(":\n")[0]  # tarfile lists every way it tried
        raise _no_packed_run(archive, why) from None


def _no_packed_run(archive: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{archive} is no packed run: {why}", "make one with `make pack RUN=…`, and name it: FILE=…")


def _name_of(archive: Path) -> str:
    """The one folder that the archive holds; no links, which could lead out of it."""
    with _opened(archive) as tar:
        paths = [Path(name) for name in tar.getnames()]
        others = [member.name for member in tar if not (member.isfile() or member.isdir())]
    if others:
        raise _no_packed_run(archive, f"{others[0]} is a link or a device")
    tops = {part for path in paths for part in path.parts[:1]}
    if len(tops) != 1 or not re.fullmatch(r"\w[\w.-]*", name := tops.pop()):
        raise _no_packed_run(archive, "it does not hold one folder")
    if Path(name, "recipe.json") not in paths:
        raise _no_packed_run(archive, f"there is no recipe.json in its folder {name}")
    return name


def _stages_of(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Name -> settings of the stages of a run that came from elsewhere; no name leads out of the run's folder."""
    with suppress(ArtifactError, ValueError, LookupError, TypeError):
        stages = Written.model_validate(read_json(run_dir / "recipe.json")).stages
        if stages and all(settings["kind"] in STAGES for settings in stages.values()):
            return stages
    raise ArtifactError("recipe.json of the packed run does not name its stages", hint="pack it again with `make pack`")


def _merge_again(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the merged weights of a finished stage, and records their checksum."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # when it is imported it says what CPUs lack
    from stages.engines.merging import merge_again  # imports torch
    from stages.engines.models import quiet

    stage = build_stage(folder.name, settings.pop("kind"), settings)
    for field, ref in stage.references():
        if field == "model" and ref.scheme == "run" and not locate(ref, folder.parent).is_dir():
            raise ArtifactError(f"the packed run rests on {ref}, which is not here", hint="unpack that run first")
    with quiet():
        merge_again(Inputs(stage, folder.parent).checkpoint("model"), folder, settings.get("quantization"))
    manifest = read_json(folder / MANIFEST)
    before, found = manifest["files"][WEIGHTS], _entry(folder / WEIGHTS)
    manifest["files"][WEIGHTS] = found
    if found != before:
        manifest["merged_again"] = {"on": hardware(), "sha256_before": before["sha256"]}
    write_json(folder / MANIFEST, manifest)


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}
