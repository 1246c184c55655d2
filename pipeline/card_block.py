"""The `r1:` block in the front matter of a data card: what it may say, and reading it (form: `pipeline/card.py`)."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import CardError, ConfigError
from pipeline.places import stays_inside
from pipeline.settings import did_you_mean, parse_yaml, refuse_secrets
from pipeline.wrong_setting import model_at

Shape = Literal["problem", "demo", "preference", "text"]


def _inside(pattern: str) -> str:
    if not stays_inside(pattern):
        raise ValueError(f"'{pattern}' leaves the folder that R1_DATA names")
    return pattern


Pattern = Annotated[str, AfterValidator(_inside)]
"""A file or glob under the folder that R1_DATA names."""


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hub(_Block):
    """Where the source lies on the Hugging Face hub."""

    id: str
    revision: str | None = Field(pattern=r"^[0-9a-f]{40}$")
    """A commit, never a branch: a branch moves. null = none is confirmed, so the rows come from a mirror only."""
    config: str | None = None
    splits: tuple[str, ...] | dict[str, str] = ("train",)
    """Our splits, by the names they have there or as `{ours: theirs}`."""
    stream: bool = Field(False, exclude=True)
    """Too large to be copied here: read over the network, row by row."""


class Config(_Block):
    """What differs in one config of a card; None means as in the card."""

    rows: Shape | None = None
    generator: bool = False
    hub_config: str | None = None
    hub: Hub | None = Field(None, exclude_if=lambda hub: hub is None)
    """Where a config lies in another data set than the card's."""
    mirror: dict[str, Pattern] | None = None
    constants: dict[str, str] = {}


class Block(_Block):
    """The `r1:` block of a card."""

    version: int = 1
    rows: Shape
    generator: bool = False
    package: str | None = None
    """The Python package behind a generator; its installed version is part of the revision."""
    hub: Hub | None = None
    mirror: dict[str, Pattern] = {}
    columns: dict[str, str] = {}
    constants: dict[str, str] = {}
    holdout: dict[str, float] = {}
    unique: bool = False
    max_bad_share: float = Field(0.2, gt=0, le=1, exclude=True)
    """Highest share of broken rows (`pipeline/bad_rows.py`) in the source; above it the run stops."""
    warnings: tuple[str, ...] = Field((), exclude=True)
    """Sentences to read before using the data, beside those about the licence."""
    splits: tuple[str, ...] = ("train", "eval")
    """The splits of a generator; a source's splits follow from `hub`, `mirror` and `holdout`."""
    configs: dict[str, Config] = {}

    @model_validator(mode="after")
    def _is_possible(self) -> "Block":
        if not (self.generator or self.hub or self.mirror):
            raise ValueError("no source: give `generator: true`, `hub:` or `mirror:`")
        shares = self.holdout.values()
        if sum(shares) >= 1 or not all(share > 0 for share in shares):
            raise ValueError("the shares of `holdout` must be above 0 and leave rows for train")
        taken = {*self.mirror, *(self.hub.splits if self.hub else ())} & self.holdout.keys()
        if taken:
            raise ValueError(f"`holdout` makes {sorted(taken)}, which the source has already")
        return self


def licence_warnings(card: str, licence: str) -> tuple[str, ...]:
    """What to know before using or publishing the data of `card`; manifests record the licence by the same words."""
    if licence == "not stated":
        return (f"card {card}: the source states no licence; ask its authors before publishing",)
    if re.search(r"(^|-)nc(-|$)", licence):
        return (f"card {card}: licence {licence} allows no commercial use",)
    return ()


def read_front_matter(readme: Path) -> dict[str, Any]:
    """The front matter of a card; CardError if it is no YAML or has no `r1:` block."""
    found = re.match(r"---\n(.*?)\n---\s*\n", readme.read_text(encoding="utf-8"), re.DOTALL)
    if found:
        refuse_secrets(found[1], str(readme))
    try:
        front = _parsed(f"\n{found[1]}", str(readme)) if found else None  # begins in the second line
    except ConfigError as error:
        raise CardError(error.message, error.hint) from None
    if not isinstance(front, dict) or "r1" not in front:
        raise CardError(f"{readme} has no `r1:` block in its front matter", "see pipeline/card.py for its form")
    return front


@lru_cache(maxsize=256)
def _parsed(text: str, where: str) -> Any:
    """The YAML; a recipe asks for the same few cards a hundred times, and parsing one takes 10 ms."""
    return parse_yaml(text, where)


def read_block(readme: Path, block: Any) -> Block:
    """The `r1:` block of a card; CardError with the place and the reason if it cannot be meant."""
    try:
        return Block.model_validate(block)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("r1", *first["loc"])))
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            *within, key = map(str, first["loc"])
            hint = did_you_mean(key, model_at(Block, within).model_fields)
            raise CardError(f"card {readme.parent.name}: {where}: unknown key", hint) from error
        raise CardError(f"card {readme.parent.name}: {where}: {what}", f"mend {readme}") from error
