"""What a recipe needs that may not be there yet, and what a person should know about the data it uses.

A recipe resolves without its models and other runs, so that it can be planned and shown on any machine. `missing`
names what a stage would not find, with the command that makes it; the runner refuses to start such a stage.
"""

from collections.abc import Iterable

from pipeline import card
from pipeline.errors import ReferenceError
from pipeline.places import ROOT, runs_folder
from pipeline.recipe import DEFAULT_SCALE, Recipe, default_run, names


def missing(recipe: Recipe, stages: Iterable[str]) -> dict[str, str]:
    """What `path:` and `run:` references of these stages do not find: one sentence each -> what to do about it."""
    found: dict[str, str] = {}
    for ref in dict.fromkeys(ref for name in stages for _, ref in recipe.stages[name].references()):
        if ref.scheme == "path" and not (ROOT / ref.target).is_dir():
            found[f"{ref.target} is not there yet"] = recipe.setup or "check the path; it is relative to the project"
        if ref.scheme == "run" and not (runs_folder() / ref.target).is_dir():
            found[f"{ref} is not there yet"] = f"make it first: {_command_for(ref.target)}"
    return found


def require_there(recipe: Recipe, stages: Iterable[str]) -> None:
    """A ReferenceError when a `path:` or `run:` reference of one of these stages leads nowhere."""
    for sentence, hint in missing(recipe, stages).items():
        raise ReferenceError(sentence, hint=hint)


def licence_warnings(recipe: Recipe, stages: Iterable[str]) -> list[str]:
    """What the cards of these stages warn of (no licence, no commercial use), with the stages that use them."""
    users: dict[str, list[str]] = {}
    for name in stages:
        used = {ref.target for _, ref in recipe.stages[name].references() if ref.scheme == "card"}
        for target in sorted({card.parse_card_ref(target).name for target in used}):
            users.setdefault(target, []).append(name)
    return [
        f"{sentence} (used by {', '.join(stages)})"
        for target, stages in users.items()
        for sentence in card.load_card(target).warnings
    ]


def _command_for(target: str) -> str:
    """The command that makes RUN/STAGE; for a run with a name of its own the recipe is left to the reader."""
    run, _, stage = target.partition("/")
    pairs = [(recipe, scale) for recipe in names("recipes") for scale in names("scales")]
    recipe, scale = next((pair for pair in pairs if default_run(*pair) == run), ("RECIPE", ""))
    size = "" if scale == DEFAULT_SCALE else f" SCALE={scale}" if scale else f" RUN={run}"
    return f"make {recipe}{size} UNTIL={stage}"
