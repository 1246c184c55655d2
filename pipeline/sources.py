"""Where the rows of a data card come from: files on this machine, or the Hugging Face hub.

Files are read with json, csv and pyarrow. The `datasets` library takes 1.4 s to import and writes an Arrow
copy before it gives the first row, so it is kept for what it does best: the hub, pinned and cached.
"""

import csv
import gzip
import hashlib
import json
import os
import socket
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

RawRow = dict[str, Any]
ENDINGS = ("jsonl", "json", "csv", "parquet")


def data_folder() -> Path | None:
    """The mirror: the folder that the environment variable R1_DATA names, if any."""
    named = os.environ.get("R1_DATA")
    return Path(named).expanduser().resolve() if named else None


def read_rows(file: Path) -> Iterator[RawRow]:
    """Rows of a .jsonl, .json (a list), .csv or .parquet file; the first three also with .gz behind.

    Raises DataError when the file is of another kind, cut off, damaged, or holds something that is no row.
    """
    try:
        for row in _rows(file):
            if not isinstance(row, dict):
                raise DataError(f"{file} holds {type(row).__name__}, where every row is a mapping", "is it this file?")
            yield row
    except (OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}", "is the file cut off?") from error


def _rows(file: Path) -> Iterator[Any]:
    ending = file.name.removesuffix(".gz").rpartition(".")[2]
    if ending not in ENDINGS:
        raise DataError(f"{file}: unknown kind of file", f"use one that ends in {', '.join(ENDINGS)}")
    if ending == "parquet":
        import pyarrow.parquet  # type: ignore[import-untyped]

        yield from pyarrow.parquet.read_table(file).to_pylist()
        return
    opener: Any = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8", newline="" if ending == "csv" else None) as text:
        yield from csv.DictReader(text) if ending == "csv" else _json_rows(file, text, ending)


def _json_rows(file: Path, text: Iterable[str], ending: str) -> Iterator[Any]:
    pieces = text if ending == "jsonl" else [_whole(text)]
    for number, piece in enumerate(pieces, start=1):
        if not piece.strip():
            continue
        try:
            found = json.loads(piece)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {number}: not JSON ({error})", "is the file cut off?") from error
        yield from found if isinstance(found, list) else [found]


def _whole(text: Iterable[str]) -> str:
    return "".join(text)


def hub_rows(dataset: str, revision: str, config: str | None, split: str, hint: str) -> Iterable[RawRow]:
    """One split of a hub data set, as an Arrow table on disk that is read row by row.

    Raises DataError, with `hint`, when the hub cannot be reached and the data set is not in its cache.
    """
    if not _hub_answers():
        # Read when huggingface_hub is first imported: what is cached loads, and nobody waits 20 s in retries.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    try:
        return datasets.load_dataset(dataset, config, split=split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot load {dataset}, split '{split}', from the hub: {reason}", hint) from error


def _hub_answers(timeout_s: float = 3.0) -> bool:
    if urllib.request.getproxies():
        return True  # only the proxy knows
    url = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def sha256_of(file: Path) -> str:
    """Hex digest of a file, remembered for as long as its size and time stay the same."""
    stat = file.stat()
    return _sha256(file, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _sha256(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
