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
      max_bad_share: 0.2                     # more broken rows than this stop the run (pipeline/bad_rows.py)
      configs: {demos: {rows: demo}}         # what differs in a config

`prepare.py` may hold `row(raw, config) -> dict | str | None`, whose keys are laid over the mapped columns (None leaves
the row out, a text says why; a broken row raises BadRow), and, for `generator: true`,
`rows(split, config, limit, seed) -> Iterator[dict]`.

Reads: the mirror if R1_DATA is set and the card has a file for the split, else the hub at the pinned
revision. Never one in place of the other: rows that silently come from elsewhere cannot be reproduced.
Makes: plain dicts, all values text, with exactly the columns of their shape (`pipeline/card_rows.py`). Files and
streams are read row by row: `rows` with a limit holds only that many, however large the source is.
Beside the README lie three rows in the source's columns, `examples.jsonl` (`examples.CONFIG.jsonl`), for tests.
Further folders with cards: environment variable R1_CARDS. Commands: `make cards`, `make card NAME=x` to start
one, `make card-check NAME=x` to try one on real rows.
"""

import hashlib
import heapq
import importlib.metadata
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.bad_rows import BadRow, Tally
from pipeline.card_block import Block, Config, Hub, Shape, licence_warnings, read_block, read_front_matter
from pipeline.card_rows import COLUMNS, Row, RowMaker, as_text, bucket, canonical_id, usable_gold
from pipeline.errors import CardError, DataError, ReferenceError
from pipeline.places import DATA_CARDS
from pipeline.settings import did_you_mean
from pipeline.sources import RawRow, data_folder, hub_rows, is_rows, read_rows, sha256_of

__all__ = ["COLUMNS", "Card", "Row", "as_text", "bucket", "canonical_id", "list_cards", "load_card", "usable_gold"]


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


@dataclass(frozen=True)
class Card:
    """One data set we know. Make it with `load_card`."""

    folder: Path
    front: dict[str, Any]
    block: Block
    files: tuple[Path, ...] = ()
    """Read in place of the source (`reading`)."""

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
        own = tuple(f"card {self.name}: {sentence}" for sentence in self.block.warnings)
        return (*licence_warnings(self.name, self.licence), *own)

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
        return tuple(dict.fromkeys([*own, *self.block.configs]))

    @cached_property
    def revision(self) -> str:
        """Names the exact data: a hash of the files, the hub's commit, or a generator's version."""
        if files := self._all_files():
            digests = " ".join(map(sha256_of, files))
            return "files-" + hashlib.sha256(digests.encode()).hexdigest()[:16]
        hubs = [self.block.hub, *(config.hub for config in self.block.configs.values())]
        if pins := [hub.revision or "not pinned" for hub in hubs if hub]:
            return " ".join(dict.fromkeys(pins))
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

    def reading(self, place: Path) -> "Card":
        """The same card on a file, or on all files of a folder, in place of its source.

        All rows belong to whichever split is asked for. Raises DataError if nothing is there.
        """
        found = sorted(file for file in place.rglob("*") if is_rows(file)) if place.is_dir() else [place]
        if not found or not found[0].is_file():
            raise DataError(f"card {self.name}: there are no rows at {place}", "give a file, or a folder of files")
        return replace(self, files=tuple(found))

    def examples(self, config: str | None = None) -> Path:
        """The card's own three rows, in the source's columns: `examples.CONFIG.jsonl` if it is there."""
        own = self.folder / f"examples.{config}.jsonl"
        return own if own.exists() else self.folder / "examples.jsonl"

    def check(self, split: str, config: str | None = None) -> None:
        """Raises CardError for a split or config that the card has not."""
        if split not in self.splits:
            raise CardError(f"card {self.name} has no split '{split}'", did_you_mean(split, self.splits))
        self._config(config)

    def lacks(self, split: str, config: str | None = None) -> DataError | None:
        """What this machine lacks to read the rows, as far as can be told without reading one; None if nothing."""
        try:
            if self.generates(config) or self._files(split, config):
                return None
        except DataError as error:
            return error
        hub = self._hub(config)
        if hub and not hub.revision:
            page = f"https://huggingface.co/datasets/{hub.id}/commits/main"
            hint = f"write the commit that {page} shows into `revision` of {self.folder / 'README.md'}"
            if self.block.mirror or self._config(config).mirror:
                hint += f", or {self._mirror_hint(split, config)}"
            return DataError(f"card {self.name}: no revision of {hub.id} is pinned, so it is not loaded", hint)
        if hub:
            return None
        return DataError(f"card {self.name}: R1_DATA is not set", self._mirror_hint(split, config))

    def needs_hub(self, split: str, config: str | None = None) -> bool:
        """Whether the rows come from the hub. Raises DataError as `lacks` tells it."""
        return not (self.generates(config) or self._files(split, config))

    def rows(self, split: str, config: str | None = None, limit: int | None = None, seed: int = 0) -> list[Row]:
        """Rows of one split in an order that `seed` fixes; a smaller `limit` gives the beginning of a larger.

        Memory holds `limit` rows, and the whole split without one. Bad rows are counted, and told in a warning.
        Raises CardError (the card is wrong) or DataError (the data are): no such split, config or file, hub out of
        reach, too many bad rows, nothing left.
        """
        if self.generates(config):
            return list(itertools.islice(self.stream(split, config, limit, seed), limit))
        found = self.stream(split, config)
        if limit is None:
            self._refuse_whole(split, config)
            return sorted(found, key=lambda row: _place(row, seed))
        return heapq.nsmallest(limit, found, key=lambda row: _place(row, seed))

    def _refuse_whole(self, split: str, config: str | None) -> None:
        """Raises DataError where a split is too large to be copied here, let alone held in memory."""
        hub = self._hub(config)
        if hub and hub.stream and self.lacks(split, config) is None and self.needs_hub(split, config):
            hint = "say how many rows to take: `caps` of sft, `num_problems` or `num_preferences` of others"
            raise DataError(f"card {self.name}: {hub.id} is streamed, because it is too large to hold whole", hint)

    def stream(
        self, split: str, config: str | None = None, limit: int | None = None, seed: int = 0, tally: Tally | None = None
    ) -> Iterator[Row]:
        """Rows of one split in the order of the source, one at a time. Raises as `rows` does.

        Args:
            limit, seed: for generators only, which must know how many rows to make, and which.
            tally: counts what is left out and what is bad; one of its own is made without it.
        """
        self.check(split, config)
        if error := self.lacks(split, config):
            raise error
        tally = tally or self.tally(split, config)
        maker = RowMaker(self.folder, self.block, config)
        if self.generates(config):
            made = maker.generated(split=split, config=config, limit=limit, seed=seed)
            rows = maker.each(made, maker.checked, tally)
        else:
            rows = maker.each(self.raw(split, config, tally), maker.mapped, tally)
            rows = self._of_split(maker.once(rows, tally), split, tally)
        for row in rows:
            tally.num_kept += 1
            yield row
        tally.finish()

    def raw(self, split: str, config: str | None, tally: Tally) -> Iterator[RawRow]:
        """Rows of a split as the source has them; `tally` counts lines of a file that are torn."""

        def count_torn(sentence: str) -> None:
            tally.num_found += 1
            tally.count_bad(BadRow("not a row"), sentence)

        if files := self._files(split, config):
            return itertools.chain.from_iterable(read_rows(file, count_torn) for file in files)
        hub = self._hub(config)
        assert hub and hub.revision, "lacks() has seen to it"
        name = self._config(config).hub_config or hub.config
        theirs = hub.splits[split] if isinstance(hub.splits, dict) else self._source_split(split)
        return hub_rows(hub.id, hub.revision, name, theirs, self._mirror_hint(split, config), hub.stream)

    def tally(self, split: str, config: str | None = None) -> Tally:
        """An empty tally for the rows of a split."""
        where = f"card {self.name}, split '{split}'" + (f", config '{config}'" if config else "")
        return Tally(where, self.block.max_bad_share, self._whence(split, config))

    def _config(self, config: str | None) -> Config:
        if config is None or config in self.configs or self.block.generator:
            return self.block.configs.get(config or "", Config())
        raise CardError(f"card {self.name} has no config '{config}'", did_you_mean(config, self.configs))

    def generates(self, config: str | None) -> bool:
        """Whether the rows of a config are made here."""
        return not self.files and (self._config(config).generator or self.block.generator)

    def _hub(self, config: str | None) -> Hub | None:
        return self._config(config).hub or self.block.hub

    def _source_split(self, split: str) -> str:
        return "train" if split in self.block.holdout else split

    def _of_split(self, rows: Iterator[Row], split: str, tally: Tally) -> Iterator[Row]:
        whole = bool(self.files) or self._source_split(split) != "train"
        for row in rows:
            if whole or self._split_of(row) == split:
                yield row
            else:
                tally.left_out["in another split"] += 1

    def _split_of(self, row: Row) -> str:
        """Which split a row of the source's train split belongs to."""
        place = bucket(row.get("id") or row["text"])
        for split, share in self.block.holdout.items():
            if place < share:
                return split
            place -= share
        return "train"

    def _pattern(self, split: str, config: str | None) -> str | None:
        return (self._config(config).mirror or self.block.mirror).get(self._source_split(split))

    def _files(self, split: str, config: str | None) -> list[Path]:
        """The mirror's files; none when R1_DATA is not set or the card names no file."""
        folder, pattern = data_folder(), self._pattern(split, config)
        if self.files:
            return list(self.files)
        if folder is None or pattern is None:
            return []
        if files := sorted(folder.glob(pattern)):
            return files
        hub = self._hub(config)
        other = f", or unset R1_DATA to load {hub.id} from the hub" if hub and hub.revision else ""
        raise DataError(f"card {self.name}: R1_DATA={folder} has no {pattern}", f"copy it there{other}")

    def _all_files(self) -> list[Path]:
        """Those there are; a generated config needs none of them, and rows that need one say so (`_files`)."""
        if self.files:
            return list(self.files)
        mirrors = [self.block.mirror, *(config.mirror or {} for config in self.block.configs.values())]
        folder = data_folder()
        return [
            file for mirror in mirrors for pattern in mirror.values() if folder for file in sorted(folder.glob(pattern))
        ]

    def _mirror_hint(self, split: str, config: str | None) -> str:
        """What to do when there is no mirror and the hub does not help."""
        if pattern := self._pattern(split, config):
            return f"put {pattern} into a folder and set R1_DATA to that folder"
        return f"split '{split}' lies on the hub only: load it once where the hub can be reached"

    def _whence(self, split: str, config: str | None) -> str:
        if self.generates(config):
            return str(self.folder / "prepare.py")
        hub = self._hub(config)
        return ", ".join(map(str, self._files(split, config))) or (hub.id if hub else "nowhere")


def _place(row: Row, seed: int) -> str:
    """Orders rows by a hash of each alone, so that one row more or less in the source moves no other."""
    return hashlib.sha256(f"{seed}:{json.dumps(row, sort_keys=True)}".encode()).hexdigest()


def card_folders() -> list[Path]:
    """The project's own cards, then the folders in R1_CARDS (separated as in PATH)."""
    more = os.environ.get("R1_CARDS", "").split(os.pathsep)
    return [DATA_CARDS, *(Path(folder).expanduser().resolve() for folder in more if folder)]


def list_cards() -> list[str]:
    """Names of all cards, in order."""
    return sorted({readme.parent.name for folder in card_folders() for readme in folder.glob("*/README.md")})


def load_card(name: str) -> Card:
    """The card called `name`. Raises CardError: unknown, no `r1:` block, or one that cannot be meant."""
    for folder in card_folders() if name else ():
        readme = folder / name / "README.md"
        if readme.exists():
            front = read_front_matter(readme)
            return Card(readme.parent, front, read_block(readme, front["r1"]))
    raise CardError(f"there is no data card '{name}'", did_you_mean(name, list_cards()))
