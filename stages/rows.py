"""The rows that a stage reads, of the shape it needs: a data set of another shape is told apart before anything loads.

A card says its shape, but a reference may lead to any card, stage or folder (`pipeline/card_rows.py` has the shapes).
"""

from pipeline.card import COLUMNS, Row
from pipeline.errors import DataError
from pipeline.refs import DatasetRef, Ref
from pipeline.stage import Inputs


def rows_of(inputs: Inputs, field: str, shape: str, limit: int | None = None) -> list[Row]:
    """The rows of every reference in a field, in order, at most `limit` of each. Raises as `sources_of` does."""
    return [row for _, rows in sources_of(inputs, field, shape, limit) for row in rows]


def sources_of(inputs: Inputs, field: str, shape: str, limit: int | None = None) -> list[tuple[Ref, list[Row]]]:
    """Each reference of a field with its own rows; DataError for one without the columns of `shape`."""
    found = inputs.rows_by_source(field, limit)
    for ref, rows in found:
        if missing := [column for column in COLUMNS[shape] if column not in rows[0]]:
            raise DataError(
                f"{field}: {ref} has no {', '.join(missing)}, so its rows are no {shape}s",
                hint=f"name a card whose rows are {shape}s; `make cards` lists them",
            )
    return found


def benchmark_texts(inputs: Inputs, sets: list[DatasetRef]) -> dict[str, list[str]]:
    """Name of each evaluation set of the field `decontaminate` -> the questions, or texts, that it holds."""
    named = inputs.rows_by_source("decontaminate") if sets else []
    return {str(ref): [row.get("prompt") or row.get("text", "") for row in rows] for ref, rows in named}
