"""What a recipe needs that may not be there yet, and what a person should know about the data it uses.

A recipe resolves without its models and other runs, so that it can be planned and shown on any machine. `missing`
names what a stage would not find, with the command that makes it; the runner refuses to start such a stage.
`missing_packages` is said before the first stage, because the one that needs them may be hours away.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline import card
from pipeline.artifact import MANIFEST, read_json
from pipeline.card_block import licence_warnings
from pipeline.errors import DataError, ReferenceError
from pipeline.places import ROOT, runs_folder
from pipeline.provenance import version_of
from pipeline.recipe import Recipe
from pipeline.refs import Ref
from pipeline.stage import locate
from pipeline.written import DEFAULT_SCALE, default_run, names


def missing(recipe: Recipe, stages: Iterable[str]) -> dict[str, str]:
    """What the references of these stages do not find: one sentence each -> what to do about it."""
    found: dict[str, str] = {}
    for stage, field, ref in (
        (recipe.stages[name], *pair) for name in stages for pair in recipe.stages[name].references()
    ):
        if ref.scheme == "card" and (error := _lacks(stage.default_split(field), ref)):
            found[error.message] = error.hint
        if ref.scheme == "path" and not (ROOT / ref.target).is_dir():
            found[f"{ref.target} is not there yet"] = recipe.setup or "check the path; it is relative to the project"
        if ref.scheme == "run" and not (runs_folder() / ref.target).is_dir():
            found[f"{ref} is not there yet"] = f"make it first: {_command_for(ref.target)}{_made_there(ref.target)}"
    return found


def missing_packages() -> list[str]:
    """The packages that `pyproject.toml` asks for and this environment does not have."""
    file = ROOT / "pyproject.toml"
    wanted = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"] if file.is_file() else []
    return [name for line in wanted if not version_of(name := re.split(r"[^\w.-]", line)[0])]


def _lacks(split: str, ref: Ref) -> DataError | None:
    address = card.parse_card_ref(ref.target)
    return card.load_card(address.name).lacks(address.split or split, address.config)


def require_there(recipe: Recipe, stages: Iterable[str]) -> None:
    """A ReferenceError when a reference of one of these stages leads nowhere on this machine."""
    for sentence, hint in missing(recipe, stages).items():
        raise ReferenceError(sentence, hint=hint)


def data_warnings(recipe: Recipe, stages: Iterable[str]) -> list[str]:
    """What the licences of the data behind these stages ask to know first, with the stages that use them.

    Data of other runs counts too, as far as those runs are there.
    """
    users: dict[str, dict[str, None]] = {}
    for name in stages:
        for _, ref in recipe.stages[name].references():
            for warning in _warnings_of(ref, recipe.folder):
                users.setdefault(warning, {})[name] = None
    return [f"{warning} (used by {', '.join(names)})" for warning, names in users.items()]


def _warnings_of(ref: Ref, run_dir: Path) -> tuple[str, ...]:
    """The warnings of a card, and of every card that another run's artifact rests on."""
    if ref.scheme == "card":
        return card.load_card(card.parse_card_ref(ref.target).name).warnings
    return tuple(dict.fromkeys(_recorded(locate(ref, run_dir)))) if ref.scheme == "run" else ()


def _recorded(folder: Path) -> Iterator[str]:
    """The warnings of all that led to the artifact in `folder`, from manifests; nothing where one is not there."""
    if not (folder / MANIFEST).is_file():
        return
    manifest = read_json(folder / MANIFEST)
    for used in manifest.get("cards", []):
        yield from licence_warnings(used["name"], str(used.get("licence") or "not stated"))
    for parent in {parent["ref"] for parents in manifest.get("inputs", {}).values() for parent in parents}:
        ref = Ref.parse(parent)
        if ref.scheme in ("stage", "run"):
            yield from _recorded(locate(ref, folder.parent))


def _made_there(target: str) -> str:
    """What the run of RUN/STAGE does have, for whoever wrote the stage's name wrong."""
    made = sorted(file.parent.name for file in (runs_folder() / target).parent.glob(f"*/{MANIFEST}"))
    return f"; that run has: {', '.join(name for name in made if '.' not in name)}" if made else ""


def _command_for(target: str) -> str:
    """The command that makes RUN/STAGE; for a run with a name of its own the recipe is left to the reader."""
    run, _, stage = target.partition("/")
    pairs = [(recipe, scale) for recipe in names("recipes") for scale in names("scales")]
    recipe, scale = next((pair for pair in pairs if default_run(*pair) == run), ("RECIPE", ""))
    size = "" if scale == DEFAULT_SCALE else f" SCALE={scale}" if scale else f" RUN={run}"
    return f"make {recipe}{size} UNTIL={stage}"
