"""Recipes: which stages, in which order, with which settings.

A recipe says what (`configs/recipes/`), a scale says how big (`configs/scales/`). The most specific wins:

    class default < configs/base.yaml (per kind) < scale (per kind) < recipe < scale (per stage) < ARGS (per kind)
    < ARGS (per stage)

`load_recipe` resolves all of it, checks every reference, and computes the fingerprint of every stage from the
configuration alone, so a plan needs no run. A `run:` or `path:` reference may lead to something that is not there yet:
that can be planned and shown (`needs.missing` says how to make it), and only a stage that is about to run needs it.

A stage that another run has made can be taken from there: `ARGS="stages.r1_zero=run:r1-zero-mini/r1_zero"` leaves it
out of this run, and everything that names `stage:r1_zero` uses that one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import card
from pipeline.artifact import load
from pipeline.errors import ConfigError, ReferenceError
from pipeline.fingerprints import fingerprints
from pipeline.places import runs_folder
from pipeline.refs import LEADS_TO, Ref
from pipeline.settings import did_you_mean, merged, parse_assignments
from pipeline.stage import Stage
from pipeline.written import (
    Published,
    Scale,
    Written,
    asked,
    by_kind,
    default_run,
    read,
    read_base,
    require_known,
    run_name,
    sized,
    valid,
)
from pipeline.wrong_setting import require_numbers, wrong_setting
from stages import STAGES


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: typed stages in order, with their fingerprints."""

    name: str
    scale: str
    run: str
    seed: int
    description: str
    stages: dict[str, Stage]
    setup: str = ""
    minutes: Mapping[str, float] = field(default_factory=dict)
    beside: str = ""
    """Another run whose measurements the report shows beside this one's."""
    published: Published | None = None
    taken: Mapping[str, dict[str, str]] = field(default_factory=dict)
    """Stages that are taken from another run: name -> kind and the reference it is `taken` from."""
    order: tuple[str, ...] = ()
    """The names of all stages as the recipe orders them, those that are taken too."""
    fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return runs_folder() / self.run

    def as_json(self) -> dict[str, Any]:
        """The resolved recipe as plain values: what `recipe.json` and the golden files hold."""
        made = {n: {"kind": s.kind, **s.model_dump(mode="json")} for n, s in self.stages.items()}
        stages = {**made, **self.taken}
        return {
            "recipe": self.name,
            "scale": self.scale,
            "run": self.run,
            "seed": self.seed,
            "description": self.description,
            **({"beside": self.beside} if self.beside else {}),
            **({"published": self.published.model_dump()} if self.published else {}),
            "stages": {name: stages[name] for name in self.order},
        }

    def between(self, first: str | None = None, last: str | None = None) -> list[str]:
        """The stages from `first` to `last`, both included; ConfigError when there is no such stage or no such way."""
        for word, name in (("FROM", first), ("UNTIL", last)):
            if name and name not in self.stages:
                hint = did_you_mean(name, self.stages)
                raise ConfigError(f"{word}={name}: recipe {self.name} has no such stage", hint=hint)
        names = list(self.stages)
        if not names:
            hint = f"name some under `stages:` in configs/recipes/{self.name}.yaml"
            raise ConfigError(f"recipe {self.name} makes nothing: it has no stages", hint=hint)
        start, end = names.index(first) if first else 0, names.index(last) if last else len(names) - 1
        if start > end:
            raise ConfigError(f"FROM={first} comes after UNTIL={last} in recipe {self.name}", hint=", ".join(names))
        return names[start : end + 1]

    def beneath(self, wanted: Iterable[str]) -> set[str]:
        """The wanted stages and every earlier one that they rest on."""
        found = set(wanted)
        for name in reversed(self.stages):
            if name in found:
                found |= {ref.target for _, ref in self.stages[name].references() if ref.scheme == "stage"}
        return found

    def dependents(self, name: str) -> list[str]:
        """`name` and every later stage that rests on it."""
        found = [name]
        for other, stage in self.stages.items():
            if any(ref.scheme == "stage" and ref.target in found for _, ref in stage.references()):
                found.append(other)
        return found


def load_recipe(name: str, scale: str, run: str | None = None, args: Iterable[str] = ()) -> Recipe:
    """Resolves recipe x scale x ARGS; every mistake is a ConfigError or ReferenceError with one sentence."""
    sizes = read("scales", scale)
    size = valid(Scale, {**sizes, "name": scale}, f"scale {scale}")
    plain = sized(read("recipes", name), size, name)
    written, of_kinds = by_kind(asked(plain, parse_assignments(args), name))
    per_kind = merged(merged(read_base(), by_kind(sizes)[1]), of_kinds)
    require_known(written, {*Written.model_fields}, f"recipe {name}")
    require_known(sizes, {*Scale.model_fields, *STAGES} - {"name"}, f"scale {scale}")
    said = valid(Written, written, f"recipe {name} and ARGS")
    if said.scales and scale not in said.scales:
        raise ConfigError(f"recipe {name} is not for scale {scale}", hint=f"SCALE={said.scales[0]}")
    run = run_name(run or default_run(name, scale))
    taken = _taken(said.stages, plain.get("stages") or {}, size)
    made_here = _made_here(said.stages, taken)
    stages = {stage: _stage(stage, given, per_kind, size, said.seed) for stage, given in made_here.items()}
    _check_references(stages)
    recipe = Recipe(
        name=name,
        scale=scale,
        run=run,
        seed=said.seed,
        description=said.description,
        stages=stages,
        setup=size.setup,
        minutes=size.minutes,
        beside=run_name(said.beside.replace("{scale}", scale)) if said.beside else "",
        published=said.published,
        taken=taken,
        order=tuple(said.stages),
    )
    recipe.fingerprints.update(fingerprints(stages, recipe.folder))
    return recipe


def _taken(stages: Mapping[str, Any], plain: Mapping[str, Any], size: Scale) -> dict[str, dict[str, str]]:
    """The stages for which a `run:` reference is written in place of settings; `plain` says of which kind they are."""
    found = {}
    for name, given in stages.items():
        if not isinstance(given, str):
            continue
        if not given.startswith("run:") or name not in plain:
            hint = did_you_mean(name, plain) if name not in plain else "e.g. stages.r1_zero=run:r1-zero-mini/r1_zero"
            raise ConfigError(f"stages.{name}: '{given}' is no stage of another run that could stand here", hint=hint)
        try:
            found[name] = {"kind": plain[name]["kind"], "taken": str(Ref.parse(_named(given, size)))}
        except ValueError as error:
            raise ConfigError(f"stages.{name}: {error}") from None
    return found


def _made_here(stages: Mapping[str, Any], taken: Mapping[str, dict[str, str]]) -> dict[str, Any]:
    """The stages that are not taken, with references to those that are leading to where they are taken from."""
    places = {f"stage:{name}": entry["taken"] for name, entry in taken.items()}
    return {name: _redirected(given, places) for name, given in stages.items() if name not in taken}


def _redirected(value: Any, places: Mapping[str, str]) -> Any:
    """`value` with every reference that has a new place in `places` replaced by it."""
    if isinstance(value, dict):
        return {key: _redirected(part, places) for key, part in value.items()}
    if isinstance(value, list):
        return [_redirected(part, places) for part in value]
    return places.get(value, value) if isinstance(value, str) else value


def _stage(name: str, given: Any, per_kind: dict[str, Any], scale: Scale, seed: int) -> Stage:
    kind = given.get("kind") if isinstance(given, dict) else given
    if not isinstance(given, dict) or not isinstance(kind, str) or kind not in STAGES:
        hint = did_you_mean(str(kind), sorted(STAGES))
        raise ConfigError(f"stages.{name}: '{kind}' is no kind of stage; it must have a kind", hint=hint)
    settings = merged({"seed": seed}, merged(per_kind.get(kind) or {}, given))
    del settings["kind"]
    return build_stage(name, kind, _at_scale(settings, scale, name))


def _at_scale(value: Any, scale: Scale, where: str) -> Any:
    """Replaces `scale:NAME` by what the scale calls NAME, and `{scale}` in a `run:` reference by the scale's name."""
    if isinstance(value, dict):
        return {key: _at_scale(part, scale, where) for key, part in value.items()}
    if isinstance(value, list):
        return [part for written in value for part in _spliced(_at_scale(written, scale, where), written)]
    if isinstance(value, str) and value.startswith("scale:"):
        key = value.removeprefix("scale:")
        if key not in scale.refs:
            hint = did_you_mean(key, scale.refs)
            raise ReferenceError(f"stages.{where}: the scale has no '{key}' under refs", hint=hint)
        found = scale.refs[key]
        return [_named(ref, scale) for ref in found] if isinstance(found, list) else _named(found, scale)
    return _named(value, scale)


def _named(value: Any, scale: Scale) -> Any:
    is_run = isinstance(value, str) and value.startswith("run:")
    return value.replace("{scale}", scale.name) if is_run else value


def _spliced(value: Any, written: Any) -> list[Any]:
    """A list that a `scale:NAME` inside a list stood for becomes part of that list."""
    return value if isinstance(value, list) and isinstance(written, str) else [value]


def build_stage(name: str, kind: str, settings: Mapping[str, Any]) -> Stage:
    """The typed stage; a ConfigError names the setting, what is wrong with it and the nearest known one."""
    try:
        stage = STAGES[kind].model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("stages", name, *first["loc"])))
        message, hint = wrong_setting(STAGES[kind], kind, first)
        raise ConfigError(f"{place}: {message}", hint=hint) from None
    require_numbers(stage.model_dump(), f"stages.{name}")
    return stage


def _check_references(stages: Mapping[str, Stage]) -> None:
    earlier: dict[str, Stage] = {}
    for name, stage in stages.items():
        wanted = stage.reference_fields()
        for field_name, ref in stage.references():
            made = _what_it_leads_to(ref, earlier, stages, f"stages.{name}.{field_name}")
            if ref.scheme == "card":
                address = card.parse_card_ref(ref.target)
                card.load_card(address.name).check(address.split or stage.default_split(field_name), address.config)
            if made and wanted[field_name] not in made:
                kinds = f"is of the kind {made[0]}, one of the kind {wanted[field_name]} belongs here"
                raise ReferenceError(f"stages.{name}.{field_name}: {ref} {kinds}")
        earlier[name] = stage


def _what_it_leads_to(
    ref: Ref, earlier: Mapping[str, Stage], stages: Mapping[str, Stage], where: str
) -> tuple[str, ...]:
    if ref.scheme == "stage":
        if ref.target in earlier:
            return (earlier[ref.target].makes,)
        if ref.target in stages:
            raise ReferenceError(f"{where}: {ref} comes later in the recipe; a stage can only use earlier ones")
        raise ReferenceError(f"{where}: there is no stage '{ref.target}'", hint=did_you_mean(ref.target, stages))
    if ref.scheme == "run":
        folder = runs_folder() / ref.target
        return (load(folder).kind,) if folder.is_dir() else ()
    return LEADS_TO[ref.scheme]
