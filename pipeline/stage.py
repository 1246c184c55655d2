"""The base of every stage: a frozen, typed description with one method, `run(inputs, work)`.

A stage is config and behaviour in one class: no builder, no factory. Its fields are what a recipe may set. Fields
whose type is a reference (`CheckpointRef`, `DatasetRef`) are the edges of the graph. Fields that cannot change the
result (where to compute, how often to save) are `Runtime[...]` and stay out of the fingerprint.

    class Evaluate(Stage):
        kind: ClassVar[str] = "evaluate"
        makes: ClassVar[str] = METRICS
        model: CheckpointRef
        num_samples: int = 1
        token_budget: Runtime[int] = 16384

        def run(self, inputs: Inputs, work: Workdir) -> dict[str, Any]: ...
"""

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline import card
from pipeline.artifact import load, sha256, write_json
from pipeline.card import Row
from pipeline.durable import fsync, whole_file
from pipeline.errors import DataError, ReferenceError
from pipeline.places import ROOT, runs_folder
from pipeline.refs import Ref, Wants
from pipeline.sources import read_rows


class _Runtime:
    """Marks a field that cannot change the result."""


T = TypeVar("T")
RUNTIME = _Runtime()
Runtime = Annotated[T, RUNTIME]


class Stage(BaseModel, ABC):
    """One step of a recipe. Raise `version` by hand when the meaning of a stage changes; code is not hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), validate_default=True)

    kind: ClassVar[str]
    makes: ClassVar[str]
    version: ClassVar[int] = 1
    spreads: ClassVar[bool] = False
    """Whether several processes can make it together (`LAUNCH=ddp`)."""

    seed: int = Field(0, ge=0, description="seeds the order of data, the initial weights and the sampling")

    @abstractmethod
    def run(self, inputs: "Inputs", work: "Workdir") -> dict[str, Any]:
        """Makes the artifact's files in `work.path` and returns its headline metrics."""

    def dry_run(self, inputs: "Inputs", work: "Workdir") -> dict[str, Any] | None:
        """The counts of what would be kept and left out, as far as they need no model; None for a stage without any.

        A stage that can be run for it leaves its files in `work.path`, for later stages to read.
        """
        return None

    def room_bytes(self, inputs: "Inputs") -> int:
        """About how many bytes this stage will have on disk at most, as far as that is known before it starts."""
        return 0

    def variables(self) -> dict[str, str]:
        """Environment variables that its process is started with; what is set already stays."""
        return {}

    @classmethod
    def reference_fields(cls) -> dict[str, str]:
        """Field name -> the kind of artifact it wants, for every field that holds references."""
        return {
            name: wants.artifact
            for name, field in cls.model_fields.items()
            for wants in _marks(field.metadata, field.annotation)
            if isinstance(wants, Wants)
        }

    @classmethod
    def default_split(cls, field: str) -> str:
        """The split a card in this field stands for when its reference names none."""
        extra = cls.model_fields[field].json_schema_extra
        return str(extra.get("split", "train")) if isinstance(extra, dict) else "train"

    def references(self) -> Iterator[tuple[str, Ref]]:
        """(field, reference) for every reference this stage holds, in the order of the fields."""
        for name in self.reference_fields():
            value = getattr(self, name)
            for ref in value if isinstance(value, list | tuple) else [value]:
                if ref is not None:
                    yield name, ref

    def settings(self) -> dict[str, Any]:
        """Everything that can change the result, as plain JSON values; references are left out."""
        runtime = {n for n, f in type(self).model_fields.items() if RUNTIME in _marks(f.metadata, f.annotation)}
        return self.model_dump(mode="json", exclude=runtime | set(self.reference_fields()))

    def fingerprint(self, identities: Mapping[str, list[str]]) -> str:
        """Names the result: kind, version, settings and the identity of every input, field by field."""
        record = {
            "kind": self.kind,
            "version": self.version,
            "settings": self.settings(),
            "inputs": identities,
        }
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _marks(metadata: Iterable[Any], annotation: Any) -> Iterator[Any]:
    """The marks of a field, also where they stand inside `list[...]` or `... | None`."""
    yield from metadata
    yield from getattr(annotation, "__metadata__", ())
    for argument in getattr(annotation, "__args__", ()):
        yield from _marks((), argument)


@dataclass(frozen=True)
class ModelSource:
    """Where a checkpoint lies: a local folder, or a hub id with its pinned revision."""

    path: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        return self.revision is None


class Inputs:
    """A stage's references, resolved to folders and rows."""

    def __init__(self, stage: Stage, run_dir: Path) -> None:
        self._stage = stage
        self._run_dir = run_dir

    def checkpoint(self, field: str) -> ModelSource:
        """The model behind a CheckpointRef field."""
        ref: Ref = getattr(self._stage, field)
        if ref.scheme == "hub":
            name, _, revision = ref.target.partition("@")
            return ModelSource(name, revision)
        folder = locate(ref, self._run_dir)
        if ref.scheme != "path":
            load(folder)  # refuses a torn or changed checkpoint before anything is read from it
        elif not (folder / "config.json").is_file():
            raise ReferenceError(f"{field}: there is no model at {folder} (config.json is missing)")
        return ModelSource(str(folder))

    def rows(self, field: str, limit: int | None = None) -> list[Row]:
        """The rows of every reference in a DatasetRef field, in order; at most `limit` from each."""
        return [row for _, rows in self.rows_by_source(field, limit) for row in rows]

    def rows_by_source(self, field: str, limit: int | None = None) -> list[tuple[Ref, list[Row]]]:
        """Each reference of a DatasetRef field with its own rows, at most `limit`; DataError if one has none."""
        value = getattr(self._stage, field)
        refs = list(value) if isinstance(value, list | tuple) else [value] * (value is not None)
        if not refs:
            raise DataError(f"{field}: it names no data set", hint=f"give {field} a list such as [card:gsm8k]")
        return [(ref, self._rows_of(ref, field, limit)) for ref in refs]

    def streams(self, field: str, limit: int | None = None) -> Iterator[tuple[Ref, Iterator[Row]]]:
        """Each reference of a DatasetRef field with its rows one by one; without a limit no card is held in memory."""
        value = getattr(self._stage, field)
        for ref in value if isinstance(value, list | tuple) else [value]:
            if ref.scheme == "card" and limit is None:
                name, config, split = card.parse_card_ref(ref.target)
                yield ref, card.load_card(name).stream(split or self._stage.default_split(field), config)
            elif ref.scheme == "card":
                yield ref, iter(self._rows_of(ref, field, limit))
            else:
                yield ref, stream_dataset(self._artifact(ref), limit)

    def folder(self, field: str) -> Path:
        """The whole artifact behind a field with one `stage:`, `run:` or `path:` reference."""
        return self._artifact(getattr(self._stage, field))

    def _artifact(self, ref: Ref) -> Path:
        folder = locate(ref, self._run_dir)
        return folder if ref.scheme == "path" else load(folder).path

    def _rows_of(self, ref: Ref, field: str, limit: int | None) -> list[Row]:
        if ref.scheme == "card":
            name, config, own_split = card.parse_card_ref(ref.target)
            split = own_split or self._stage.default_split(field)
            rows = card.load_card(name).rows(split, config, limit=limit, seed=self._stage.seed)
        else:
            rows = read_dataset(self._artifact(ref), limit)
        if not rows:
            raise DataError(f"{field}: {ref} has no rows", hint="`make cards` lists the cards, `make plan` the stages")
        return rows


def read_dataset(folder: Path, limit: int | None = None) -> list[Row]:
    """The first `limit` rows of a data set's folder."""
    return list(stream_dataset(folder, limit))


def stream_dataset(folder: Path, limit: int | None = None) -> Iterator[Row]:
    """The same rows one by one, every value as text, file by file in the order of their names.

    Rows lie in `rows/*.parquet` (an artifact of ours) or beside each other in `*.parquet` and `*.jsonl`.
    """
    shards = folder / "rows"
    beside = (file for file in folder.glob("*") if file.suffix in (".parquet", ".jsonl"))
    files = sorted(shards.glob("*.parquet") if shards.is_dir() else beside)
    rows = islice(chain.from_iterable(map(read_rows, files)), limit)
    return ({column: card.as_text(value) for column, value in row.items()} for row in rows)


def locate(ref: Ref, run_dir: Path) -> Path:
    """The folder behind a `stage:`, `run:` or `path:` reference."""
    if ref.scheme == "stage":
        return run_dir / ref.target
    if ref.scheme == "run":
        return runs_folder() / ref.target
    if ref.scheme == "path":
        return ROOT / ref.target
    raise ReferenceError(f"{ref} has no folder on this machine")


class Workdir:
    """The partial folder of a running stage, its metrics, its progress and its checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._started = time.monotonic()
        self._last_progress = 0.0
        self._note = ""
        self._seconds_before = self._read_seconds()

    @property
    def seconds(self) -> float:
        """How long this stage has worked, the time before a resume included."""
        return self._seconds_before + time.monotonic() - self._started

    def _read_seconds(self) -> float:
        with suppress(OSError, ValueError, KeyError):
            return float(json.loads((self.path / "progress.json").read_text())["seconds"])
        return 0.0

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Appends one row of the training curves."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def flush(self) -> None:
        """The curves so far are on disk: they must not end before a checkpoint does."""
        if self.metrics_file.exists():
            fsync(self.metrics_file)

    def rewind(self, step: int) -> None:
        """Cuts the curves back to `step`, the checkpoint that training goes on from."""
        if self.metrics_file.exists():
            rows = [row for row in read_jsonl(self.metrics_file) if row["step"] <= step]
            self.write_jsonl(self.metrics_file.name, rows)

    def progress(self, step: int, total: int, note: str = "") -> None:
        """Says how far the stage is; the runner draws it. Cheap to call every step; a note stays until the next."""
        now = time.monotonic()
        self._note = note or self._note
        if now - self._last_progress > 0.2 or step == total:
            self._last_progress = now
            target = self.path / "progress.json"
            temporary = target.with_name(f".{target.name}.tmp")
            temporary.write_text(
                json.dumps({"step": step, "total": total, "note": self._note, "seconds": self.seconds})
            )
            temporary.replace(target)

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Writes `rows` to `name`, whole or not at all."""
        target = self.path / name
        with whole_file(target) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return target

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.path / name, value)


class Follower(Workdir):
    """The folder as the other processes of a spread stage have it: they read what the first one writes."""

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None: ...

    def flush(self) -> None: ...

    def rewind(self, step: int) -> None: ...

    def progress(self, step: int, total: int, note: str = "") -> None: ...

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        return self.path / name

    def write_json(self, name: str, value: Any) -> None: ...


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every whole row of a JSON-lines file; a last line cut off by a kill is left out."""
    rows = []
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in filter(None, text.split("\n")):  # what a model wrote may hold other ends of lines
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def path_identity(folder: Path) -> str:
    """What a `path:` reference contributes to a fingerprint: the content of its model and data files."""
    kept = [p for p in sorted(folder.rglob("*")) if p.suffix in (".safetensors", ".json", ".jsonl", ".parquet")]
    parts = [(str(p.relative_to(folder)), sha256(p) if p.stat().st_size < 2**30 else p.stat().st_size) for p in kept]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
