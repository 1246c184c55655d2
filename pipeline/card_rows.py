"""From a row of a source to a row of ours: columns mapped, `prepare.py` laid over, everything checked.

Makes: plain dicts, all values text, with exactly the columns of their shape; or the reason why there is none.
"""

import hashlib
import importlib.util
import json
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.bad_rows import BadRow, Tally
from pipeline.card_block import Block, Config
from pipeline.errors import CardError, PipelineError
from pipeline.settings import did_you_mean
from pipeline.sources import RawRow

Row = dict[str, str]
Hook = Callable[[RawRow, str | None], "dict[str, str] | str | None"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "problem": ("id", "prompt", "answer", "checker", "domain", "language"),
    "demo": ("id", "prompt", "response", "domain", "language"),
    "preference": ("id", "prompt", "chosen", "rejected", "domain", "language"),
    "text": ("text",),
}
SAYS_SOMETHING = frozenset({"prompt", "response", "chosen", "rejected", "text"})  # never empty
JSON_GOLDS = frozenset({"code", "countdown", "ifeval", "instruction", "reasoning_gym"})  # the gold is a JSON object
NO_GOLD = frozenset({"refusal", "judge"})  # checkers that need none
LEFT_OUT = "left out by the card"
HALF_CHARACTER = "half a character (a lone surrogate)"
NO_MISTAKE = (BadRow, PipelineError, MemoryError)  # raised in prepare.py, and no bug of it
MISTAKE = (ImportError, NameError, SyntaxError, OSError)  # the same whatever the row


def canonical_id(text: str) -> str:
    """16 hex digits that are the same for texts that differ only in case, spacing or Unicode form."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode("utf-8", "replace")).hexdigest()[:16]


def storable(text: str) -> str:
    """The text with what UTF-8 cannot hold (half a surrogate pair, from a source's JSON) replaced by `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def bucket(key: str) -> float:
    """A number in [0, 1) that depends on nothing but `key`; holdouts and generators split by it."""
    return int.from_bytes(hashlib.sha256(f"holdout:{key}".encode()).digest()[:8]) / 2**64


def as_text(value: Any) -> str:
    """A value of a source's row as text: what is not text is written as JSON, nothing as ""."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


class RowMaker:
    """Makes rows of one config of one card."""

    def __init__(self, folder: Path, block: Block, config: str | None) -> None:
        self._card, self._folder, self._config = folder.name, folder, config
        self._prepare = folder / "prepare.py"
        named = block.configs.get(config or "", Config())
        self.shape = named.rows or block.rows
        wanted = COLUMNS[self.shape]
        self._constants = {ours: text for ours, text in (block.constants | named.constants).items() if ours in wanted}
        self._columns = {ours: theirs for ours, theirs in block.columns.items() if ours in wanted}
        self._unique = block.unique or self.shape == "problem"

    def each(self, raws: Iterable[RawRow], make: Callable[[RawRow], Row | str], tally: Tally) -> Iterator[Row]:
        """What `make` makes of every raw row, in order; `tally` counts those of which it makes nothing."""
        for raw in raws:
            tally.num_found += 1
            try:
                row = make(raw)
            except BadRow as error:
                tally.count_bad(error, raw)
                continue
            if isinstance(row, str):
                tally.left_out[row] += 1
            else:
                yield row

    def once(self, rows: Iterable[Row], tally: Tally) -> Iterator[Row]:
        """Each problem once, and other rows where the card is `unique`.

        The same problem twice would weigh double in training and in the interval of a score.
        """
        seen: set[tuple[str, str]] = set()
        for row in rows:
            if self._unique:
                name = row["id"], row["language"]
                if name in seen:
                    tally.left_out["there before"] += 1
                    continue
                seen.add(name)
            yield row

    def hook(self, function: str) -> Any:
        """A function of the card's `prepare.py`. Raises CardError if it has none."""
        module = _prepare_module(self._prepare)
        if not hasattr(module, function):
            raise CardError(f"card {self._card}: prepare.py has no function '{function}'", "see pipeline/card.py")
        return getattr(module, function)

    def generated(self, **asked: Any) -> Iterator[Row]:
        """What `rows` of the card's `prepare.py` makes. Raises CardError if it has a mistake."""
        rows = self.hook("rows")
        with _mistakes_told(self._prepare):
            yield from rows(**asked)

    def checked(self, row: Row) -> Row:
        """`row` in the order of its shape's columns. Raises CardError if the card gives other columns, else BadRow."""
        wanted = COLUMNS[self.shape]
        lacks, extra = [c for c in wanted if c not in row], [c for c in row if c not in wanted]
        if lacks or extra:
            what = f"without {', '.join(lacks)}" if lacks else f"with more columns: {', '.join(extra)}"
            hint = f"mend `columns`, `constants` or prepare.py in {self._folder}"
            raise CardError(f"card {self._card} gives a {self.shape} row {what}", hint)
        for column in wanted:
            _require_text(column, row[column])
        if self.shape == "problem" and not usable_gold(row):
            raise BadRow("no usable gold")
        return {column: row[column] for column in wanted}

    def mapped(self, raw: RawRow) -> Row | str:
        """The row, or the reason why the card leaves it out.

        Raises BadRow for a broken one, CardError if `prepare.py` has a mistake that is in no row.
        """
        source = _Source(raw)
        row = self._constants | {ours: as_text(source[theirs]) for ours, theirs in self._columns.items()}
        try:
            more = self._row_hook(source, self._config) if self._row_hook else {}
            if more is None or isinstance(more, str):
                return more or LEFT_OUT
            row |= more
            if "id" not in row and isinstance(row.get("prompt"), str):
                row = {"id": canonical_id(row["prompt"])} | row
        except NO_MISTAKE:
            raise
        except UnicodeEncodeError as error:
            raise BadRow(HALF_CHARACTER) from error
        except MISTAKE as error:
            raise _mistake(self._prepare, error) from error
        except Exception as error:
            reason = f"not of the form that the card expects ({type(error).__name__})"
            raise BadRow(reason, f"see {_place(self._prepare, error)}") from error
        return self.checked(row)

    @cached_property
    def _row_hook(self) -> "Hook | None":
        return self.hook("row") if self._prepare.exists() else None


class _Source(RawRow):
    """One row of the source; a column that it lacks makes it a bad row."""

    def __missing__(self, column: str) -> Any:
        raise BadRow(f"no column '{column}'", did_you_mean(column, self))


def _require_text(column: str, value: object) -> None:
    if not isinstance(value, str):
        raise BadRow(f"no text in {column}")
    if column in SAYS_SOMETHING and not value.strip():
        raise BadRow(f"{column} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(HALF_CHARACTER) from error


def usable_gold(row: Row) -> bool:
    """Whether a problem has a gold: the cheap part. Whether math-verify can read it, the stage finds out."""
    if row.get("checker", "refusal") in NO_GOLD:
        return True
    if row["checker"] not in JSON_GOLDS:
        return bool(row["answer"].strip())
    try:
        return isinstance(json.loads(row["answer"]), dict)
    except (ValueError, RecursionError):
        return False


@lru_cache
def _prepare_module(file: Path) -> ModuleType:
    if not file.exists():
        raise CardError(f"card {file.parent.name}: {file} is missing", "a generator card needs it")
    spec = importlib.util.spec_from_file_location(f"data_cards.{file.parent.name}.prepare", file)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with _mistakes_told(file):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _mistakes_told(prepare: Path) -> Iterator[None]:
    """What goes wrong in the code of a card, as a CardError."""
    try:
        yield
    except NO_MISTAKE:
        raise
    except Exception as error:
        raise _mistake(prepare, error) from error


def _mistake(prepare: Path, error: Exception) -> CardError:
    card = prepare.parent.name
    said = error.msg if isinstance(error, SyntaxError) else error
    sentence = f"card {card}: {_place(prepare, error)}: {type(error).__name__}: {said}"
    return CardError(sentence, f"mend it, then: make card-check NAME={card}")


def _place(prepare: Path, error: Exception) -> str:
    """`FILE, line N`: the innermost line of a `prepare.py` that led to an error; without N where none is known."""
    lines = [n for frame, n in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(prepare)]
    if isinstance(error, SyntaxError) and error.filename == str(prepare) and error.lineno:
        lines.append(error.lineno)
    return f"{prepare}, line {lines[-1]}" if lines else str(prepare)
