"""Where the rows of a data card come from: files on this machine, or the Hugging Face hub.

Files are read with json, csv and pyarrow. The `datasets` library takes 1.4 s to import and writes an Arrow
copy before it gives the first row, so it is kept for what it does best: the hub, pinned and cached.
"""

import codecs
import csv
import gzip
import hashlib
import io
import json
import os
import socket
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import DataError

RawRow = dict[str, Any]
ENDINGS = ("jsonl", "json", "csv", "parquet")
NOT_UTF8, RECODE = "not in UTF-8", "write it again in UTF-8: iconv -f LATIN1 -t UTF-8, say"
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
PARQUET_BATCH = 256  # rows with a reasoning trace have tens of kilobytes


def data_folder() -> Path | None:
    """The mirror: the folder that the environment variable R1_DATA names, if any."""
    named = os.environ.get("R1_DATA")
    return Path(named).expanduser().resolve() if named else None


def is_rows(file: Path) -> bool:
    """Whether `read_rows` knows such a file, by its name."""
    return file.name.removesuffix(".gz").rpartition(".")[2] in ENDINGS


def read_rows(file: Path, on_torn: Callable[[str], None] | None = None) -> Iterator[RawRow]:
    """Rows of a .jsonl, .json (a list), .csv or .parquet file, one by one; the first three also with .gz behind.

    Args:
        on_torn: called with a sentence for each line that is no row (of a .jsonl: no JSON object; of a .csv: more cells
            than columns), and the line is passed over; without it such a line raises DataError, as a file of no rows
            at all always does.
    """
    ending = file.name.removesuffix(".gz").rpartition(".")[2]
    try:
        require_regular(file)
        if not is_rows(file):
            raise DataError(f"{file}: unknown kind of file", f"use one that ends in {', '.join(ENDINGS)}")
        if ending == "parquet":
            yield from _parquet_rows(file)
            return
        opener: Any = gzip.open if file.suffix == ".gz" else open
        with opener(file, "rb") as stream:
            if ending == "json":
                yield from _json_list(file, stream.read())
            elif stream.peek(2)[:2] in UTF16_MARKS:
                raise DataError(f"{file}: in UTF-16, {NOT_UTF8}", "write it again: iconv -f UTF-16 -t UTF-8")
            elif ending == "jsonl":
                yield from _json_lines(file, stream, on_torn)
            else:
                yield from _csv_rows(file, io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), on_torn)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: {NOT_UTF8} ({error})", RECODE) from error
    except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
        raise DataError(f"{file}: cannot be read to its end ({error})", "is the file cut off? copy it again") from error
    except OSError as error:
        raise _not_opened(file, error) from error


def require_regular(file: Path) -> None:
    """Raises DataError for a folder, and for what would be waited for or never end: a pipe, a device."""
    if file.is_dir():
        raise DataError(f"{file} is a folder", "put a file of rows in its place, or name one that lies in it")
    if file.exists() and not file.is_file():
        raise DataError(f"{file} is no regular file", "copy its rows into a file, and name that one")


def _not_opened(file: Path, error: OSError) -> DataError:
    return DataError(f"{file}: cannot be opened ({error.strerror})", "check its path and its rights")


def _parquet_rows(file: Path) -> Iterator[RawRow]:
    """In batches, so that a file larger than memory can be read."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=PARQUET_BATCH):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: not a whole Parquet file ({error})", "is the file cut off? copy it again") from error


def _json_lines(file: Path, lines: Iterable[bytes], on_torn: Callable[[str], None] | None) -> Iterator[RawRow]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            if not isinstance(found, dict):
                raise ValueError(f"it holds {type(found).__name__}, not an object")
        except (ValueError, RecursionError) as error:
            is_text = not isinstance(error, UnicodeDecodeError)
            sentence = f"{file.name}, line {number}: {'not a row of JSON' if is_text else NOT_UTF8} ({error})"
            _torn(sentence, "is the file cut off?" if is_text else RECODE, on_torn)
        else:
            yield found


def _csv_rows(file: Path, text: Iterable[str], on_torn: Callable[[str], None] | None) -> Iterator[RawRow]:
    csv.field_size_limit(2**31 - 1)  # a reasoning trace may be longer than the 131,072 characters of the default
    reader = csv.DictReader(text)
    names = list(reader.fieldnames or ())
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise DataError(f"{file}: two columns are called {twice[0]!r}", "give each a name of its own in the first line")
    for row in reader:
        if None in row:
            _torn(f"{file.name}, line {reader.line_num}: more cells than columns", "is a comma not quoted?", on_torn)
        else:
            yield row


def _torn(sentence: str, hint: str, on_torn: Callable[[str], None] | None) -> None:
    if on_torn is None:
        raise DataError(sentence, hint)
    on_torn(sentence)


def _json_list(file: Path, text: bytes) -> list[RawRow]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error})", "is the file cut off?") from error
    rows = found if isinstance(found, list) else [found]
    for row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{file}: its rows are no objects but {type(row).__name__}", "see the card for its columns")
    return rows


def hub_rows(
    dataset: str, revision: str, config: str | None, split: str, hint: str, stream: bool = False
) -> Iterator[RawRow]:
    """One split of a hub data set: an Arrow table on disk that is read row by row, or with `stream` no copy at all.

    Raises DataError, with `hint`, when the hub cannot be reached and the data set is not in its cache.
    """
    if not hub_answers():
        # Read when huggingface_hub is first imported: what is cached loads, and nobody waits 20 s in retries.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import datasets

    try:
        yield from datasets.load_dataset(dataset, config, split=split, revision=revision, streaming=stream)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot load {dataset}, split '{split}', from the hub: {reason}", hint) from error


def hub_answers(timeout_s: float = 3.0) -> bool:
    """Whether a connection to the hub can be opened."""
    if urllib.request.getproxies().keys() - {"no"}:
        return True  # only the proxy knows
    url = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def sha256_of(file: Path) -> str:
    """Hex digest of a file, remembered for as long as its size and time stay the same. Raises DataError without one."""
    try:
        require_regular(file)
        stat = file.stat()
        return _sha256(file, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise _not_opened(file, error) from error


@lru_cache
def _sha256(file: Path, size: int, mtime_ns: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
