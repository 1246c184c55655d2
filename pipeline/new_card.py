"""`make card NAME=x [FILE=rows.jsonl]`: starts a data card, as whole as a file of its rows allows.

Makes `data_cards/NAME/README.md` and, from FILE, `examples.jsonl` with its first three rows. Columns of a usual
name are mapped already, so that for many files `make card-check NAME=x FILE=…` is satisfied at once.
"""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

from pipeline.card import COLUMNS, list_cards
from pipeline.card_block import Shape
from pipeline.errors import CardError, DataError, ResourceError, printable
from pipeline.markdown import read_template
from pipeline.places import DATA_CARDS
from pipeline.sources import RawRow, read_rows

PROMPTS = ("prompt", "question", "problem", "instruction")
ANSWERS = ("answer", "gold", "final_answer")
RESPONSES = ("response", "completion")
DTYPES: dict[type, str] = {str: "string", bool: "bool", int: "int64", float: "float64", list: "list"}


def start_card(name: str, file: Path | None = None) -> Path:
    """Writes the folder and returns it.

    Raises CardError: taken or impossible name; DataError: no rows in the file; ResourceError: it cannot be written.
    """
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise CardError(f"'{name}' cannot name a card", "use small letters, digits and _, as in NAME=my_data")
    if name in list_cards():
        raise CardError(f"there is a card '{name}' already", f"mend it, or try it with `make card-check NAME={name}`")
    rows = list(itertools.islice(read_rows(file), 3)) if file else []
    if file and not rows:
        raise DataError(f"{file} has no rows", "give a file with rows in the source's columns")
    folder = DATA_CARDS / name
    files = {"README.md": printable(_readme(name, file, rows))}
    if rows:
        files["examples.jsonl"] = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    try:
        _write(folder, files)
    except FileExistsError:
        hint = "move it away, or write its README.md yourself; pipeline/card.py says what it holds"
        raise CardError(f"{folder} is there already, and is no card", hint) from None
    except OSError as error:
        hint = f"mend the rights and the room of {folder.parent}, then the same command again"
        raise ResourceError(f"{folder} cannot be written ({error.strerror})", hint) from error
    return folder


def _write(folder: Path, files: dict[str, str]) -> None:
    """A new folder with these files, or none."""
    folder.mkdir(parents=True)
    try:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _readme(name: str, file: Path | None, rows: list[RawRow]) -> str:
    first = rows[0] if rows else {}
    shape = _shape(first)
    return read_template("data_card.md.j2").render(
        name=name,
        file=f"{name}/train{''.join(file.suffixes)}" if file else f"{name}/train*.jsonl",
        features={column: _dtype(column, rows) for column in first},
        shape=shape,
        columns=_columns(shape, first),
    )


def _shape(row: RawRow) -> Shape:
    """The kind of rows that the columns show; problems where they show none, to be mended."""
    texts = {column for column, value in row.items() if isinstance(value, str)}  # lists of messages need a prepare.py
    if {"chosen", "rejected"} <= texts:
        return "preference"
    if not row.keys() & set(ANSWERS) and texts & set(RESPONSES):
        return "demo"
    return "text" if "text" in texts and not row.keys() & {*PROMPTS, *ANSWERS} else "problem"


def _columns(shape: Shape, row: RawRow) -> dict[str, str]:
    """Ours: the source's, for the columns that a card of this kind of rows has to map."""
    usual = {"prompt": PROMPTS, "answer": ANSWERS, "response": RESPONSES}
    wanted = [column for column in COLUMNS[shape] if column not in ("id", "checker", "domain", "language")]
    return {column: _usual(usual.get(column, (column,)), row) for column in wanted}


def _dtype(column: str, rows: list[RawRow]) -> str:
    value: Any = next((row[column] for row in rows if row.get(column) is not None), None)
    return DTYPES.get(type(value), "null" if value is None else "struct")


def _usual(names: tuple[str, ...], row: RawRow) -> str:
    """The first of these columns that the row has; else the first name, to be mended."""
    return next((name for name in names if name in row), names[0])
