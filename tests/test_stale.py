"""Every recipe of the mini scale: a changed setting makes exactly that stage and those that rest on it stale."""

from pathlib import Path

import pytest

from pipeline.artifact import publish, write_json
from pipeline.plan import DONE, STALE, make_plan, record_of
from pipeline.provenance import cards_used
from pipeline.recipe import Recipe, load_recipe
from tests.golden import golden_files
from tests.test_card import SUMS, Toys, toys

__all__ = ["toys"]

RECIPES = [file.stem.removesuffix("@mini") for file in golden_files() if file.stem.endswith("@mini")]
A_SETTING = {
    "pretrain": "num_steps",
    "sft": "num_train_epochs",
    "grpo": "max_steps",
    "rejection_sampling": "num_samples",
    "curate": "seed",
    "reward_model": "num_train_epochs",
    "evaluate": "num_samples",
}


def finish(recipe: Recipe) -> None:
    """Leaves an artifact for every stage as if the run had gone through, with next to nothing in it."""
    for name in recipe.stages:
        partial = recipe.folder / f"{name}.partial"
        partial.mkdir(parents=True)
        write_json(partial / "config.json", {})
        record = {**record_of(recipe, name), "cards": cards_used(recipe.stages[name]), "seconds": 1.0}
        publish(partial, recipe.folder / name, record)


def resting_on(recipe: Recipe, name: str) -> set[str]:
    """`name` and every stage whose settings name it, directly or not, read from the plain text of the recipe."""
    found, stages = {name}, recipe.as_json()["stages"]
    for other, settings in stages.items():
        if any(f"'stage:{known}'" in repr(settings) for known in found):
            found.add(other)
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_a_changed_setting_makes_exactly_that_stage_and_those_after_it_stale(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1_RUNS", str(tmp_path))
    recipe = load_recipe(name, "mini")
    finish(recipe)
    assert {line.state for line in make_plan(recipe)} == {DONE}
    for stage, built in recipe.stages.items():
        setting = A_SETTING[built.kind]
        old = getattr(built, setting)
        lines = make_plan(load_recipe(name, "mini", args=[f"stages.{stage}.{setting}={old + 1}"]))
        stale = {line.stage: line.detail for line in lines if line.state == STALE}
        assert set(stale) == resting_on(recipe, stage), stage
        assert stale.pop(stage) == f"{setting} {old} → {old + 1}"
        assert all("stage:" in detail and "→" in detail for detail in stale.values())


def test_a_stage_that_is_stale_because_a_data_file_changed_names_the_card(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1_RUNS", str(tmp_path / "runs"))
    was, args = toys.card().revision, ["stages.r1_zero.problems=[card:toy]"]
    finish(load_recipe("r1-zero", "mini", args=args))
    toys.source(SUMS[:-1])
    now = toys.card().revision
    lines = {line.stage: line for line in make_plan(load_recipe("r1-zero", "mini", args=args))}
    assert lines["r1_zero"].state == STALE
    assert lines["r1_zero"].detail == f'data of card toy "{was}" → "{now}"'


def test_there_are_recipes_to_walk() -> None:
    assert {"r1-zero", "mini-base"} <= set(RECIPES)
