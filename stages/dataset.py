"""A data set artifact in the making: Parquet shards, each whole or not there.

Makes `rows/part-00000.parquet …`; with the card beside them (`dataset_card.py`) `datasets.load_dataset(FOLDER)` reads
the folder as it lies. A finished shard has a mark in the stage's checkpoints, written last: a resume goes on after the
last mark, and memory holds one shard however many there are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifact import read_checked, sha256, write_checked
from pipeline.durable import whole_file
from pipeline.stage import Workdir

Row = dict[str, Any]
Columns = Mapping[str, str]
"""Column -> its Arrow type by name: `string`, `int64`, `double`."""


class Shards:
    """The shards of one data set, `size` problems to each; shards of another size are forgotten and made again."""

    def __init__(self, work: Workdir, columns: Columns, size: int) -> None:
        self._columns = columns
        self._rows, self._marks = work.path / "rows", work.checkpoints
        self._prefix = f"shard-{size}-"
        self._rows.mkdir(exist_ok=True)
        for mark in self._marks.glob("shard-*.json"):
            if not (mark.name.startswith(self._prefix) and self._is_whole(mark)):
                mark.unlink()
        done = {self._part(number).name for number in self._numbers()}
        for file in self._rows.iterdir():
            if file.name not in done:
                file.unlink()

    def is_done(self, number: int) -> bool:
        """Whether an earlier process, or this one, has finished the shard."""
        return self._mark(number).exists()

    def publish(self, number: int, rows: Sequence[Row], record: Mapping[str, Any]) -> None:
        """Writes the shard's rows, then its mark with `record` (plain JSON values)."""
        write_parquet(self._part(number), [rows], self._columns)
        write_checked(self._mark(number), {"rows": sha256(self._part(number)), "record": record})

    def records(self) -> Iterator[Any]:
        """The record of each finished shard, in order, one at a time."""
        return (read_checked(self._mark(number))["record"] for number in self._numbers())

    def _is_whole(self, mark: Path) -> bool:
        """Whether a shard's mark and its rows are what an earlier process wrote."""
        written, part = read_checked(mark), self._part(self._number(mark))
        return bool(written) and part.is_file() and sha256(part) == written["rows"]

    def _number(self, mark: Path) -> int:
        return int(mark.stem.removeprefix(self._prefix))

    def _numbers(self) -> list[int]:
        return sorted(map(self._number, self._marks.glob(f"{self._prefix}*.json")))

    def _part(self, number: int) -> Path:
        return self._rows / f"part-{number:05}.parquet"

    def _mark(self, number: int) -> Path:
        return self._marks / f"{self._prefix}{number}.json"


def write_parquet(path: Path, batches: Iterable[Sequence[Row]], columns: Columns) -> None:
    """Writes rows batch by batch, whole or not at all; the file is on disk when this returns."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    with whole_file(path, "wb") as file, pq.ParquetWriter(file, schema) as writer:
        for rows in batches:
            writer.write_table(pa.Table.from_pylist(list(rows), schema))
