"""The resolved configuration of every recipe at every scale it names, as committed text.

python -m tests.golden      # write all of them again (`make golden`)
"""

from functools import cache
from pathlib import Path

import yaml

from pipeline.errors import PipelineError
from pipeline.recipe import Recipe, load_recipe
from pipeline.written import names

FOLDER = Path(__file__).parent


@cache
def golden_files() -> list[Path]:
    """One file for each recipe x scale that belongs together."""
    pairs = [(recipe, scale) for recipe in names("recipes") for scale in names("scales") if belongs(recipe, scale)]
    return [FOLDER / f"{recipe}@{scale}.yaml" for recipe, scale in pairs]


def belongs(recipe: str, scale: str) -> bool:
    """False where the scale lacks something the recipe names, such as demos for a cold start."""
    return loaded(recipe, scale) is not None


@cache
def loaded(recipe: str, scale: str) -> Recipe | None:
    """The resolved recipe; None where the two do not belong together."""
    try:
        return load_recipe(recipe, scale)
    except PipelineError as error:
        if "the scale has no" in error.message or "is not for scale" in error.message:
            return None
        raise


def resolved(file: Path) -> str:
    """The text that belongs into a golden file."""
    recipe = loaded(*file.stem.split("@"))
    assert recipe
    return yaml.safe_dump(recipe.as_json(), sort_keys=False, allow_unicode=True)
