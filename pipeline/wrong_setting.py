"""What pydantic found wrong with a stage's settings, as a sentence and a hint with the names that belong there.

A setting may lie deep: in `stages.r1_zero.rewards.0.format.weigth` it is Format that has no `weigth`, not the stage.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from pipeline.errors import ConfigError
from pipeline.settings import did_you_mean

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

LARGEST = 2**32 - 1
"""What numpy takes as a seed."""


def wrong_setting(stage: type[BaseModel], kind: str, error: "ErrorDetails") -> tuple[str, str]:
    """The sentence and the hint for one error in the settings of a stage of this kind."""
    within = [part for part in error["loc"][:-1] if isinstance(part, str)]
    if error["type"] == "extra_forbidden":
        last = error["loc"][-1]
        hint = did_you_mean(str(last), model_at(stage, within).model_fields)
        return f"{[kind, *within][-1]} has no setting '{last}'", hint
    if error["type"] == "union_tag_invalid":
        tag, tags = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"there is no kind '{tag}'", did_you_mean(tag, tags)
    if error["type"] in ("union_tag_not_found", "model_attributes_type"):
        return "its kind is not said", "write `{kind: NAME}`, with a space behind the colon"
    message = error["msg"].removeprefix("Value error, ").replace("Tuple", "List").replace("tuple", "list")
    hint = "" if error["type"] == "value_error" else "`make show`, without this, lists every setting and its value"
    if error["type"] in ("list_type", "tuple_type") and isinstance(error["input"], str):
        hint = f"write a list: [{error['input']}]"
    given = "" if isinstance(error["input"], dict) else f" (given: {error['input']!r})"  # no whole stage
    return message + given, hint


def require_numbers(value: Any, place: str) -> None:
    """ConfigError for a number that is infinite, not a number, or larger than seeds and tensors can take."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            require_numbers(part, f"{place}.{name}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            require_numbers(part, f"{place}.{index}")
    elif isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise ConfigError(f"{place}: {value} is no number to work with", hint=f"the largest is {LARGEST:,}")


def model_at(model: type[BaseModel], path: Iterable[str]) -> type[BaseModel]:
    """The model inside `model` at a path of fields; one of several, as of rewards, by its kind."""
    found = [model]
    for part in path:
        fields = [each.model_fields[part] for each in found if part in each.model_fields]
        inside = [inner for field in fields for inner in _models(field.annotation)]
        of_kind = [each for each in found if "kind" in each.model_fields and each.model_fields["kind"].default == part]
        found = inside or of_kind or found
    return found[0]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All models that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
