"""Data cards: every data set the pipeline knows, and the way from its source to our row shapes.

A card is a folder `data_cards/NAME/` with a `README.md`: an ordinary Hugging Face dataset card whose front
matter holds one more block, `r1:`, and beside it `prepare.py` where mapping columns is not enough.

    r1:
      version: 1                        # raise it when the meaning of the rows changes
      rows: problem                     # problem | demo | preference | text
      hub: {id: openai/gsm8k, config: main, revision: "740312…", splits: [train, test]}
      mirror: {train: gsm8k/train.jsonl}     # SPLIT: file or glob under the folder that R1_DATA names
      columns: {prompt: question}            # ours: the source's
      constants: {checker: math, domain: math, language: en}
      holdout: {eval: 0.1}                   # this share of the source's train split, by a hash of the id
      unique: true                           # only the first row of each id; problems are so always
      configs: {demos: {rows: demo}}         # what differs in a config

`prepare.py` may hold `row(raw, config) -> dict | None`, whose keys are laid over the mapped columns (None
drops the row), and, for `generator: true`, `rows(split, config, limit, seed) -> Iterator[dict]`.

Reads: the mirror if R1_DATA is set and the card has a file for the split, else the hub at the pinned
revision. Never one in place of the other: rows that silently come from elsewhere cannot be reproduced.
Makes: lists of plain dicts, all values text, with exactly the columns of their shape.
Further folders with cards: environment variable R1_CARDS. Command: `make cards`.
"""

import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.card_block import Block, Config, Shape, licence_warnings, read_block, read_front_matter
from pipeline.errors import CardError, DataError, ReferenceError
from pipeline.places import DATA_CARDS
from pipeline.settings import did_you_mean
from pipeline.sources import RawRow, data_folder, hub_rows, read_rows, sha256_of

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)

Row = dict[str, str]

COLUMNS: dict[str, tuple[str, ...]] = {
    "problem": ("id", "prompt", "answer", "checker", "domain", "language"),
    "demo": ("id", "prompt", "response", "domain", "language"),
    "preference": ("id", "prompt", "chosen", "rejected", "domain", "language"),
    "text": ("text",),
}
JSON_GOLDS = frozenset({"countdown", "instruction", "reasoning_gym"})  # checkers whose gold is a JSON object
NO_GOLD = frozenset({"refusal", "judge"})  # checkers that need none


class CardAddress(NamedTuple):
    """What `card:NAME[:CONFIG][/SPLIT]` names."""

    name: str
    config: str | None = None
    split: str | None = None


def parse_card_ref(text: str) -> CardAddress:
    """Reads `NAME`, `NAME/SPLIT`, `NAME:CONFIG/SPLIT`, each with or without `card:` before it."""
    found = re.fullmatch(r"(?:card:)?([\w-]+)(?::([\w.-]+))?(?:/([\w-]+))?", text)
    if not found:
        raise ReferenceError(f"'{text}' does not name a data card", "write card:NAME[:CONFIG][/SPLIT]")
    return CardAddress(*found.groups())


def canonical_id(text: str) -> str:
    """16 hex digits that are the same for texts that differ only in case, spacing or Unicode form."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode("utf-8", "replace")).hexdigest()[:16]


def bucket(key: str) -> float:
    """A number in [0, 1) that depends on nothing but `key`; holdouts and generators split by it."""
    return int.from_bytes(hashlib.sha256(f"holdout:{key}".encode()).digest()[:8]) / 2**64


@dataclass(frozen=True)
class Card:
    """One data set we know. Make it with `load_card`."""

    folder: Path
    front: dict[str, Any]
    block: Block

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def licence(self) -> str:
        """The licence word of the front matter, or `not stated`."""
        stated = str(self.front.get("license") or "unknown")
        return "not stated" if stated == "unknown" else stated

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences a person should read before using or publishing the data."""
        return licence_warnings(self.name, self.licence)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names that `card:NAME/SPLIT` may use."""
        if self.block.generator:
            return self.block.splits
        hub = self.block.hub.splits if self.block.hub else ()
        return tuple(dict.fromkeys([*self.block.mirror, *hub, *self.block.holdout]))

    @property
    def configs(self) -> tuple[str, ...]:
        """Names that `card:NAME:CONFIG` may use; a generator may know more of them."""
        own = (self.block.hub.config,) if self.block.hub and self.block.hub.config else ()
        return (*own, *self.block.configs)

    @cached_property
    def revision(self) -> str:
        """Names the exact data: a hash of the mirror's files, the hub's commit, or a generator's version."""
        if files := self._all_mirror_files():
            digests = " ".join(map(sha256_of, files))
            return "files-" + hashlib.sha256(digests.encode()).hexdigest()[:16]
        if self.block.hub:
            return self.block.hub.revision
        package = self.block.package
        return f"{package}-{importlib.metadata.version(package)}" if package else f"v{self.block.version}"

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits over the `r1:` block and the revision: changes whenever the rows may change."""
        said = json.dumps([self.block.model_dump(mode="json"), self.revision], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    def shape(self, config: str | None = None) -> Shape:
        """The kind of rows that `config` gives."""
        return self._config(config).rows or self.block.rows

    def check(self, split: str, config: str | None = None) -> None:
        """Raises CardError for a split or config that the card has not."""
        if split not in self.splits:
            raise CardError(f"card {self.name} has no split '{split}'", did_you_mean(split, self.splits))
        self._config(config)

    def lacks(self, split: str, config: str | None = None) -> DataError | None:
        """What this machine lacks to read the rows, as far as can be told without reading one; None if nothing."""
        try:
            if self._generates(config) or self._files(split, config) or self.block.hub:
                return None
        except DataError as error:
            return error
        return DataError(f"card {self.name}: R1_DATA is not set", self._mirror_hint(split))

    def rows(self, split: str, config: str | None = None, limit: int | None = None, seed: int = 0) -> list[Row]:
        """Rows of one split in an order that `seed` fixes; a smaller `limit` gives the beginning of a larger.

        Rows without a usable gold are dropped and counted in a warning. Raises CardError (the card is wrong)
        or DataError (the data are): no such split, config, file or column, hub out of reach, nothing left.
        """
        self.check(split, config)
        if error := self.lacks(split, config):
            raise error
        if self._generates(config):
            found = self._generated(split, config, limit, seed)
        else:
            found = sorted(self._sourced(split, config), key=lambda row: _place(row, seed))
        usable = [row for row in found if usable_gold(row)]
        self._check_left(split, config, len(usable), len(found))
        return usable[:limit]

    def _config(self, config: str | None) -> Config:
        if config is None or config in self.configs or self.block.generator:
            return self.block.configs.get(config or "", Config())
        raise CardError(f"card {self.name} has no config '{config}'", did_you_mean(config, self.configs))

    def _generates(self, config: str | None) -> bool:
        return self._config(config).generator or self.block.generator

    def _generated(self, split: str, config: str | None, limit: int | None, seed: int) -> list[Row]:
        made = self._hook("rows")(split=split, config=config, limit=limit, seed=seed)
        return [self._checked(row, config) for row in itertools.islice(made, limit)]

    def _sourced(self, split: str, config: str | None) -> list[Row]:
        """Rows of a split in the source's order; each problem once, and other rows where the card is `unique`."""
        raws = self._raw(self._source_split(split), config)
        mapped = (self._checked(row, config) for row in self._mapped(raws, config))
        if self._source_split(split) == "train":
            mapped = (row for row in mapped if self._split_of(row) == split)
        if self.shape(config) != "problem" and not self.block.unique:
            return list(mapped)
        # The same problem twice would weigh double in training and in the interval of a score.
        first: dict[tuple[str, str], Row] = {}
        for row in mapped:
            first.setdefault((row["id"], row["language"]), row)
        return list(first.values())

    def _source_split(self, split: str) -> str:
        return "train" if split in self.block.holdout else split

    def _split_of(self, row: Row) -> str:
        """Which split a row of the source's train split belongs to."""
        place = bucket(row.get("id") or row["text"])
        for split, share in self.block.holdout.items():
            if place < share:
                return split
            place -= share
        return "train"

    def _raw(self, split: str, config: str | None) -> Iterable[RawRow]:
        if files := self._files(split, config):
            return itertools.chain.from_iterable(map(read_rows, files))
        hub = self.block.hub
        assert hub, "check() has seen to it"
        hub_config = self._config(config).hub_config or hub.config
        return hub_rows(hub.id, hub.revision, hub_config, split, self._mirror_hint(split))

    def _files(self, split: str, config: str | None) -> list[Path]:
        mirror = self._config(config).mirror or self.block.mirror
        return self._found(mirror.get(self._source_split(split)))

    def _all_mirror_files(self) -> list[Path]:
        """Those there are; a generated config needs none of them, and rows that need one say so (`_found`)."""
        mirrors = [self.block.mirror, *(config.mirror or {} for config in self.block.configs.values())]
        folder = data_folder()
        return [
            file for mirror in mirrors for pattern in mirror.values() if folder for file in sorted(folder.glob(pattern))
        ]

    def _found(self, pattern: str | None) -> list[Path]:
        """The mirror's files; none when R1_DATA is not set or the card names no file."""
        folder = data_folder()
        if folder is None or pattern is None:
            return []
        if files := sorted(folder.glob(pattern)):
            return files
        other = f", or unset R1_DATA to load {self.block.hub.id} from the hub" if self.block.hub else ""
        raise DataError(f"card {self.name}: R1_DATA={folder} has no {pattern}", f"copy it there{other}")

    def _mirror_hint(self, split: str) -> str:
        """What to do when there is no mirror and the hub does not help."""
        if pattern := self.block.mirror.get(self._source_split(split)):
            return f"put {pattern} into a folder and set R1_DATA to that folder"
        return f"split '{split}' lies on the hub only: load it once where the hub can be reached"

    def _mapped(self, raws: Iterable[RawRow], config: str | None) -> Iterator[Row]:
        wanted = COLUMNS[self.shape(config)]
        given = self.block.constants | self._config(config).constants
        constants = {column: value for column, value in given.items() if column in wanted}
        columns = {ours: theirs for ours, theirs in self.block.columns.items() if ours in wanted}
        hook = self._hook("row") if (self.folder / "prepare.py").exists() else None
        for raw in raws:
            source = _Source(raw, self.name)
            row = constants | {ours: as_text(source[theirs]) for ours, theirs in columns.items()}
            more = hook(source, config) if hook else {}
            if more is not None:
                yield _with_id(row | more)

    def _checked(self, row: Row, config: str | None) -> Row:
        """`row` in the order of its shape's columns, once it has exactly those, all of them text."""
        shape = self.shape(config)
        lacks = [column for column in COLUMNS[shape] if not isinstance(row.get(column), str)]
        extra = [column for column in row if column not in COLUMNS[shape]]
        if lacks or extra:
            what = f"without text in {', '.join(lacks)}" if lacks else f"with more columns: {', '.join(extra)}"
            hint = f"mend `columns`, `constants` or prepare.py in {self.folder}"
            raise CardError(f"card {self.name} gives a {shape} row {what}", hint)
        return {column: storable(row[column]) for column in COLUMNS[shape]}

    def _check_left(self, split: str, config: str | None, left: int, found: int) -> None:
        where = f"card {self.name}, split '{split}'" + (f", config '{config}'" if config else "")
        if not found:
            raise DataError(f"{where}: the data set is empty", f"look at its source, {self._whence(split, config)}")
        if not left:
            hint = f"see {self.folder / 'README.md'}"
            raise DataError(f"{where}: none of its {found} rows has a usable gold answer", hint)
        if left < found:
            log.warning("%s: dropped %d of %d rows without a usable gold", where, found - left, found)

    def _whence(self, split: str, config: str | None) -> str:
        if self._generates(config):
            return str(self.folder / "prepare.py")
        files = self._files(split, config)
        return ", ".join(map(str, files)) or (self.block.hub.id if self.block.hub else "nowhere")

    def _hook(self, function: str) -> Any:
        module = _prepare_module(self.folder / "prepare.py")
        if not hasattr(module, function):
            raise CardError(f"card {self.name}: prepare.py has no function '{function}'", "see pipeline/card.py")
        return getattr(module, function)


class _Source(RawRow):
    """One row of the source; asking for a column it lacks is the data's fault, said in a sentence."""

    def __init__(self, raw: RawRow, card: str) -> None:
        super().__init__(raw)
        self.card = card

    def __missing__(self, column: str) -> Any:
        raise DataError(f"card {self.card}: the source has no column '{column}'", did_you_mean(column, self))


def usable_gold(row: Row) -> bool:
    """Whether a problem has a gold: the cheap part. Whether math-verify can read it, the stage finds out."""
    if row.get("checker", "refusal") in NO_GOLD:
        return True
    if row["checker"] not in JSON_GOLDS:
        return bool(row["answer"].strip())
    try:
        return isinstance(json.loads(row["answer"]), dict)
    except ValueError:
        return False


def as_text(value: Any) -> str:
    """A value of a source's row as text: what is not text is written as JSON, nothing as ""."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def storable(text: str) -> str:
    """The text with what UTF-8 cannot hold (half a surrogate pair, from a source's JSON) replaced by `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _with_id(row: Row) -> Row:
    return row if "id" in row or "prompt" not in row else {"id": canonical_id(row["prompt"])} | row


def _place(row: Row, seed: int) -> str:
    """Orders rows by a hash of each alone, so that one row more or less in the source moves no other."""
    return hashlib.sha256(f"{seed}:{json.dumps(row, sort_keys=True)}".encode()).hexdigest()


@lru_cache
def _prepare_module(file: Path) -> ModuleType:
    if not file.exists():
        raise CardError(f"card {file.parent.name}: {file} is missing", "a generator card needs it")
    spec = importlib.util.spec_from_file_location(f"data_cards.{file.parent.name}.prepare", file)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def card_folders() -> list[Path]:
    """The project's own cards, then the folders in R1_CARDS (separated as in PATH)."""
    more = os.environ.get("R1_CARDS", "").split(os.pathsep)
    return [DATA_CARDS, *(Path(folder).expanduser().resolve() for folder in more if folder)]


def list_cards() -> list[str]:
    """Names of all cards, in order."""
    return sorted({readme.parent.name for folder in card_folders() for readme in folder.glob("*/README.md")})


def load_card(name: str) -> Card:
    """The card called `name`. Raises CardError: unknown, no `r1:` block, or one that cannot be meant."""
    for folder in card_folders():
        readme = folder / name / "README.md"
        if readme.exists():
            front = read_front_matter(readme)
            return Card(readme.parent, front, read_block(readme, front["r1"]))
    raise CardError(f"there is no data card '{name}'", did_you_mean(name, list_cards()))
