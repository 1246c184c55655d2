"""What is written in `configs/`: recipes and scales as files, with what they extend, checked for form.

Reads `configs/base.yaml`, `configs/recipes/*.yaml` and `configs/scales/*.yaml`; makes plain mappings and the few typed
words beside the settings of stages. `recipe.py` makes stages of them. Every mistake is a ConfigError with one sentence.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError
from pipeline.places import CONFIGS
from pipeline.settings import did_you_mean, merged, read_yaml, refuse_secrets
from stages import STAGES

DEFAULT_SCALE = "mini"
WORDS = ("recipe", "scale", "run", "from", "until", "stage", "rebuild", "engine", "launch", "processes")
"""What is said beside ARGS, in capitals."""


class Scale(BaseModel):
    """What a scale file says besides the settings of each kind."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    description: str = ""
    setup: str = ""
    """What to do first, in words: shown where a `path:` reference leads nowhere."""
    refs: dict[str, Any] = {}
    """What `scale:NAME` stands for."""
    minutes: dict[str, float] = {}
    """Stage name -> minutes it takes, for the plan; finished runs on this machine know better."""
    stages: dict[str, dict[str, Any]] = {}
    """Stage name -> settings at this scale, for the recipes that have such a stage."""


class Published(BaseModel):
    """A result of others that the report shows behind our curves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    curves: dict[str, dict[int, float]]
    """Metric -> step -> value."""


class Written(BaseModel):
    """What a recipe file says besides the settings of each kind."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    description: str = ""
    seed: int = 0
    scales: list[str] = []
    """The scales it is for; none named = all."""
    beside: str = ""
    published: Published | None = None
    stages: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], Any] = {}
    """Name -> kind and settings; the name is the folder's too."""


def names(folder: str) -> list[str]:
    """The recipes (`recipes`) or scales (`scales`) there are."""
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


def default_run(recipe: str, scale: str) -> str:
    """The name of a run that was given none."""
    return f"{recipe}-{scale}"


def run_name(name: str) -> str:
    """The name, if a folder in `runs/` may be called so."""
    refuse_secrets(name, "RUN")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"a run cannot be called {name!r}", hint="use letters, digits, '-', '_' and '.'")
    return name


def read(folder: str, name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe or scale with what it extends."""
    word = folder.rstrip("s")
    if name not in names(folder):
        raise ConfigError(f"there is no {word} '{name}'", hint=did_you_mean(name, names(folder)))
    own = read_yaml(CONFIGS / folder / f"{name}.yaml")
    parent = own.pop("extends", None)
    if not parent:
        return own
    if parent in (name, *above):
        raise ConfigError(f"{word} '{name}' extends '{parent}', which extends it", hint="extend one that stands alone")
    extended = _extended if folder == "recipes" else merged
    return extended(read(folder, str(parent), (name, *above)), own)


def _extended(parent: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `parent`; a recipe that adds stages names all of them, so that their order can be read there."""
    before, after = (valid(Written, one, "a recipe and what it extends").stages for one in (parent, own))
    both = merged(parent, own)
    if set(after) - set(before):
        if missing := [name for name in before if name not in after]:
            names = f"{', '.join(missing)} is missing"
            raise ConfigError(f"a recipe that adds stages to the one it extends must name all in order; {names}")
        both["stages"] = {name: both["stages"][name] for name in after}
    return both


def read_base() -> dict[str, Any]:
    base = read_yaml(CONFIGS / "base.yaml")
    require_known(base, set(STAGES), "configs/base.yaml")
    return by_kind(base)[1]


def by_kind(layer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What a layer says of other things, and what it says of each kind of stage."""
    of_kinds = {key: value for key, value in layer.items() if key in STAGES}
    for kind, given in of_kinds.items():
        if not isinstance(given, dict):
            raise ConfigError(f"{kind}: settings belong here, not {given!r}", hint=f"e.g. {kind}.seed=7")
    return {key: value for key, value in layer.items() if key not in STAGES}, of_kinds


def asked(recipe: dict[str, Any], args: dict[str, Any], name: str) -> dict[str, Any]:
    """The recipe with what ARGS say: of all stages of a kind first, then of a stage by its name."""
    others, of_kinds = by_kind(args)
    stages = valid(Written, recipe, f"recipe {name}").stages
    _require_asked(others, stages, name)
    kinds = {stage: str(given.get("kind")) for stage, given in stages.items() if isinstance(given, dict)}
    for kind in of_kinds.keys() - set(kinds.values()):
        hint = did_you_mean(kind, dict.fromkeys(kinds.values()))
        raise ConfigError(f"ARGS: recipe {name} has no stage of kind '{kind}'", hint=hint)
    in_stages = {stage: of_kinds[kind] for stage, kind in kinds.items() if kind in of_kinds}
    return merged(merged(recipe, {"stages": in_stages}), others)


def _require_asked(args: Mapping[str, Any], stages: Mapping[str, Any], name: str) -> None:
    """ConfigError when ARGS name what the recipe does not have."""
    for key in args:
        if kinds := [kind for kind in STAGES if key not in Written.model_fields and key in STAGES[kind].model_fields]:
            hint = f"name the kind of stage it is for: {', '.join(f'{kind}.{key}' for kind in kinds)}"
            raise ConfigError(f"ARGS: '{key}' is a setting of stages", hint=hint)
        if key in WORDS:
            hint = f"it is a word beside ARGS: {key.upper()}={args[key]}"
            raise ConfigError(f"ARGS: '{key}' is no setting", hint=hint)
    require_known(args, {*Written.model_fields, *STAGES}, "ARGS")
    given = args.get("stages")
    for stage, settings in given.items() if isinstance(given, dict) else ():
        if stage not in stages and isinstance(settings, dict) and "kind" not in settings:
            raise ConfigError(f"ARGS: recipe {name} has no stage '{stage}'", hint=did_you_mean(stage, stages))


def sized(recipe: dict[str, Any], size: Scale, name: str) -> dict[str, Any]:
    """The recipe with what the scale says of its stages; ConfigError where it speaks of a stage that no recipe has."""
    stages = valid(Written, recipe, f"recipe {name}").stages
    if others := {*size.stages, *size.minutes} - set(stages):
        known = dict.fromkeys((*stages, *_stages_of_all()))  # in an order that stays
        for stage in sorted(others - known.keys()):
            raise ConfigError(f"scale {size.name}: no recipe has a stage '{stage}'", hint=did_you_mean(stage, known))
    sized = {stage: size.stages[stage] for stage in stages if stage in size.stages}
    return merged(recipe, {"stages": sized}) if sized else recipe


def _stages_of_all() -> Iterator[str]:
    """The stages of every recipe; one that cannot be read is told of where it is asked for."""
    for name in names("recipes"):
        with suppress(ConfigError):
            yield from valid(Written, read_yaml(CONFIGS / f"recipes/{name}.yaml"), name).stages


_M = TypeVar("_M", bound=BaseModel)


def valid(model: type[_M], written: Mapping[str, Any], what: str) -> _M:
    try:
        return model.model_validate(written)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{what}: {place}: {first['msg']} (given: {first['input']!r})") from None


def require_known(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: there is no setting '{key}'", hint=did_you_mean(key, sorted(known)))
