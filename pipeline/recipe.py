"""Recipes: which stages, in which order, with which settings.

A recipe says what (`configs/recipes/`), a scale says how big (`configs/scales/`). The most specific wins:

    class default < configs/base.yaml (per kind) < scale (per kind) < recipe (per stage) < ARGS

`load_recipe` resolves all of it, checks every reference, and computes the fingerprint of every stage from the
configuration alone, so a plan needs no run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline import card
from pipeline.artifact import load
from pipeline.errors import ArtifactError, ConfigError, ReferenceError
from pipeline.places import CONFIGS, ROOT, runs_folder
from pipeline.refs import LEADS_TO, Ref
from pipeline.settings import did_you_mean, merged, parse_assignments, read_yaml
from pipeline.stage import Stage, path_identity
from stages import STAGES

RECIPE_KEYS = {"description", "extends", "scales", "seed", "stages"}
SCALE_KEYS = {"description", "setup", "refs", "extends"}


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
    fingerprints: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return runs_folder() / self.run

    def as_json(self) -> dict[str, Any]:
        """The resolved recipe as plain values: what `recipe.json` and the golden files hold."""
        stages = {n: {"kind": s.kind, **s.model_dump(mode="json")} for n, s in self.stages.items()}
        return {
            "recipe": self.name,
            "scale": self.scale,
            "run": self.run,
            "seed": self.seed,
            "description": self.description,
            "stages": stages,
        }

    def dependents(self, name: str) -> list[str]:
        """`name` and every later stage that rests on it."""
        found = [name]
        for other, stage in self.stages.items():
            if any(ref.scheme == "stage" and ref.target in found for _, ref in stage.references()):
                found.append(other)
        return found


def names(folder: str) -> list[str]:
    """The recipes (`recipes`) or scales (`scales`) there are."""
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


def load_recipe(name: str, scale: str, run: str | None = None, args: Iterable[str] = ()) -> Recipe:
    """Resolves recipe x scale x ARGS; every mistake is a ConfigError or ReferenceError with one sentence."""
    sizes = _read("scales", scale)
    written = merged(_read("recipes", name), parse_assignments(args))
    per_kind = merged(_base(), {key: value for key, value in sizes.items() if key in STAGES})
    per_kind = merged(per_kind, {key: written.pop(key) for key in list(written) if key in STAGES})
    _known(written, RECIPE_KEYS | set(STAGES), f"recipe {name} and ARGS")
    _known(sizes, SCALE_KEYS | set(STAGES), f"scale {scale}")
    if scale not in written.get("scales", [scale]):
        raise ConfigError(f"recipe {name} is not for scale {scale}", hint=f"SCALE={written['scales'][0]}")
    refs, seed = sizes.get("refs", {}), written.get("seed", 0)
    stages = {
        stage: _stage(stage, given, per_kind, refs, seed) for stage, given in (written.get("stages") or {}).items()
    }
    _check_references(stages)
    recipe = Recipe(
        name=name,
        scale=scale,
        run=run or f"{name}-{scale}",
        seed=seed,
        description=written.get("description", ""),
        stages=stages,
        setup=sizes.get("setup", ""),
    )
    recipe.fingerprints.update(fingerprints(stages))
    return recipe


def _read(folder: str, name: str) -> dict[str, Any]:
    """A recipe or scale with what it extends."""
    path = CONFIGS / folder / f"{name}.yaml"
    if not path.is_file():
        word = folder.rstrip("s")
        raise ConfigError(f"there is no {word} '{name}'", hint=did_you_mean(name, names(folder)))
    own = read_yaml(path)
    parent = own.pop("extends", None)
    return _extended(_read(folder, parent), own, str(path)) if parent else own


def _extended(parent: dict[str, Any], own: dict[str, Any], where: str) -> dict[str, Any]:
    """`own` over `parent`; a recipe that adds stages names all of them, so that their order can be read there."""
    before, after = parent.get("stages") or {}, own.get("stages") or {}
    both = merged(parent, own)
    if set(after) - set(before):
        if missing := [name for name in before if name not in after]:
            raise ConfigError(f"{where} adds stages, so it must name all in order; {', '.join(missing)} is missing")
        both["stages"] = {name: both["stages"][name] for name in after}
    return both


def _base() -> dict[str, Any]:
    base = read_yaml(CONFIGS / "base.yaml")
    _known(base, set(STAGES), "configs/base.yaml")
    return base


def _known(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: there is no setting '{key}'", hint=did_you_mean(key, sorted(known)))


def _stage(name: str, given: Any, per_kind: dict[str, Any], refs: Mapping[str, Any], seed: int) -> Stage:
    if not isinstance(given, dict) or given.get("kind") not in STAGES:
        kind = given.get("kind") if isinstance(given, dict) else given
        hint = did_you_mean(str(kind), sorted(STAGES))
        raise ConfigError(f"stages.{name}: '{kind}' is no kind of stage; it must have a kind", hint=hint)
    kind = given["kind"]
    settings = merged({"seed": seed}, merged(per_kind.get(kind) or {}, given))
    del settings["kind"]
    return build_stage(name, kind, _with_scale_refs(settings, refs, name))


def _with_scale_refs(value: Any, refs: Mapping[str, Any], where: str) -> Any:
    """Replaces every `scale:NAME` by what the scale calls NAME; a list inside a list is spliced."""
    if isinstance(value, str) and value.startswith("scale:"):
        key = value.removeprefix("scale:")
        if key not in refs:
            raise ReferenceError(f"stages.{where}: the scale has no '{key}' under refs", hint=did_you_mean(key, refs))
        return refs[key]
    if isinstance(value, dict):
        return {k: _with_scale_refs(v, refs, where) for k, v in value.items()}
    return value


def build_stage(name: str, kind: str, settings: Mapping[str, Any]) -> Stage:
    """The typed stage; a ConfigError names the setting, what is wrong with it and the nearest known one."""
    try:
        return STAGES[kind].model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("stages", name, *first["loc"])))
        if first["type"] == "extra_forbidden":
            word = str(first["loc"][-1])
            raise ConfigError(
                f"{place}: {kind} has no setting '{word}'", hint=did_you_mean(word, STAGES[kind].model_fields)
            ) from None
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{place}: {message} (given: {first['input']!r})") from None


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
                raise ReferenceError(
                    f"stages.{name}.{field_name}: {ref} is a {made[0]}, a {wanted[field_name]} belongs here"
                )
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
        return (load(runs_folder() / ref.target).kind,)
    return LEADS_TO[ref.scheme]


def fingerprints(stages: Mapping[str, Stage]) -> dict[str, str]:
    """Stage name -> fingerprint, from the configuration alone."""
    found: dict[str, str] = {}
    for name, stage in stages.items():
        identities: dict[str, list[str]] = {}
        for field_name, ref in stage.references():
            identities.setdefault(field_name, []).append(identity(ref, found))
        found[name] = stage.fingerprint(identities)
    return found


def identity(ref: Ref, known: Mapping[str, str]) -> str:
    """What a reference contributes to a fingerprint: the content it stands for, as far as it can be known now."""
    if ref.scheme == "stage":
        return known[ref.target]
    if ref.scheme == "run":
        return load(runs_folder() / ref.target).fingerprint
    if ref.scheme == "card":
        return _card_identity(ref.target)
    return _path_identity(ref.target) if ref.scheme == "path" else str(ref)


def _card_identity(target: str) -> str:
    name, config, split = card.parse_card_ref(target)
    return f"{card.load_card(name).fingerprint}:{config or ''}/{split or ''}"


@cache
def _path_identity(target: str) -> str:
    folder = ROOT / target
    return path_identity(folder) if folder.is_dir() else f"missing:{target}"


def require_paths(recipe: Recipe) -> None:
    """A ReferenceError when a `path:` reference of the recipe leads nowhere."""
    for sentence in missing_paths(recipe):
        raise ReferenceError(sentence, hint=recipe.setup or "check the path; it is relative to the project")


def missing_paths(recipe: Recipe) -> list[str]:
    """The `path:` references that lead nowhere yet, one sentence each."""
    targets = {ref.target for s in recipe.stages.values() for _, ref in s.references() if ref.scheme == "path"}
    return [f"{target} is not there yet" for target in sorted(targets) if not (ROOT / target).is_dir()]


def read_run(run: str) -> tuple[str, str]:
    """The recipe and scale a run was started with."""
    from pipeline.artifact import read_json

    try:
        written = read_json(runs_folder() / run / "recipe.json")
    except ArtifactError:
        raise ConfigError(f"there is no run '{run}' in {runs_folder()}", hint="start one with `make r1-zero`") from None
    return written["recipe"], written["scale"]
