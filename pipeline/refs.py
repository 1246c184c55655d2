"""References: how a stage names what it needs.

    stage:NAME              another stage of the same recipe (an earlier one)
    run:RUN/NAME            a stage of another run
    card:NAME[:CONFIG][/SPLIT]   a data set we know (`data_cards/NAME`)
    hub:ORG/NAME@REVISION   a model on the Hugging Face hub, pinned
    path:FOLDER             a folder on this machine, relative to the project
    scale:NAME              whatever the scale file calls NAME under `refs:` (replaced while a recipe loads)

A stage declares a reference by the type of its field (`CheckpointRef`, `DatasetRef`), so the graph is declared
once and a data set where a checkpoint belongs is refused before anything starts.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from pipeline.places import stays_inside

SCHEMES = ("stage", "run", "card", "hub", "path", "scale")
_SHAPES = {
    "stage": (r"[\w-]+", "stage:NAME"),
    "run": (r"\w[\w.-]*/[\w-]+", "run:RUN/STAGE"),
    "card": (r"[\w-]+(:[\w.-]+)?(/[\w-]+)?", "card:NAME[:CONFIG][/SPLIT]"),
    "hub": (r"[\w.-]+/[\w.-]+@[\w.-]+", "hub:ORG/NAME@REVISION"),
    "path": (r".+", "path:FOLDER"),
    "scale": (r"[\w-]+", "scale:NAME"),
}


@dataclass(frozen=True)
class Ref:
    """One parsed reference, e.g. `Ref("stage", "cold_start")`; `str(ref)` writes it back."""

    scheme: str
    target: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.target}"

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """Reads `SCHEME:TARGET`; raises ValueError with a sentence when it is not one."""
        scheme, _, target = text.partition(":")
        if scheme not in SCHEMES:
            raise ValueError(f"'{text}' is not a reference; write one of {', '.join(s + ':…' for s in SCHEMES)}")
        pattern, shape = _SHAPES[scheme]
        if not re.fullmatch(pattern, target):
            raise ValueError(f"'{text}' does not have the form {shape}")
        if scheme == "path" and not stays_inside(target):
            raise ValueError(f"'{text}' leaves the project; put the folder, or a link to it, inside")
        return cls(scheme, target)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any) -> "Ref":
            if isinstance(value, Ref):
                return value
            if not isinstance(value, str):
                raise ValueError(f"a reference is text such as 'stage:NAME', not {type(value).__name__}")
            return cls.parse(value)

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


@dataclass(frozen=True)
class Wants:
    """Field metadata: what kind of artifact the reference must lead to."""

    artifact: str


CHECKPOINT, DATASET, METRICS, REWARD_MODEL = "checkpoint", "dataset", "metrics", "reward_model"

CheckpointRef = Annotated[Ref, Wants(CHECKPOINT)]
DatasetRef = Annotated[Ref, Wants(DATASET)]
MetricsRef = Annotated[Ref, Wants(METRICS)]
RewardModelRef = Annotated[Ref, Wants(REWARD_MODEL)]

# What the schemes that are no stage of ours can lead to.
LEADS_TO = {
    "card": (DATASET,),
    "hub": (CHECKPOINT, REWARD_MODEL),
    "path": (CHECKPOINT, DATASET, REWARD_MODEL),
}
