"""Recipes: the layers, the graph, and one clear sentence for every mistake."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError, PipelineError, ReferenceError
from pipeline.recipe import load_recipe
from pipeline.settings import merged, parse_assignments, parse_yaml
from stages import STAGES


def write(toy: Path, name: str, text: str) -> None:
    (toy / "configs" / f"{name}.yaml").write_text(text)


def test_the_most_specific_layer_wins(toy):
    assert load_recipe("toy", "mini").stages["model"].rate == 1.0
    write(toy, "base", "sum: {rate: 2.0}")
    assert load_recipe("toy", "mini").stages["model"].rate == 2.0
    write(toy, "scales/mini", "sum: {rate: 3.0}")
    assert load_recipe("toy", "mini").stages["model"].rate == 3.0
    write(toy, "recipes/toy", "stages: {data: {kind: count}, model: {kind: sum, data: stage:data, rate: 4.0}}")
    assert load_recipe("toy", "mini").stages["model"].rate == 4.0
    assert load_recipe("toy", "mini", args=["stages.model.rate=5.0"]).stages["model"].rate == 5.0


def test_args_may_set_a_whole_kind_below_the_recipe(toy):
    assert load_recipe("toy", "mini", args=["sum.rate=7.0"]).stages["model"].rate == 7.0


def test_one_seed_reaches_every_stage_and_every_fingerprint(toy):
    zero, seven = load_recipe("toy", "mini"), load_recipe("toy", "mini", args=["seed=7"])
    assert {stage.seed for stage in seven.stages.values()} == {7}
    assert not set(zero.fingerprints.values()) & set(seven.fingerprints.values())


def test_a_recipe_that_extends_another_keeps_its_order(toy):
    write(toy, "recipes/faster", "extends: toy\nstages: {model: {rate: 9.0}}")
    recipe = load_recipe("faster", "mini")
    assert list(recipe.stages) == ["data", "model", "eval_model"]
    assert recipe.stages["model"].rate == 9.0


def test_a_recipe_that_adds_stages_names_all_of_them_in_order(toy):
    more = "extends: toy\nstages: {data: {}, more: {kind: count}, model: {data: stage:more}, eval_model: {}}"
    write(toy, "recipes/more", more)
    assert list(load_recipe("more", "mini").stages) == ["data", "more", "model", "eval_model"]
    write(toy, "recipes/more", "extends: toy\nstages: {more: {kind: count}}")
    with pytest.raises(ConfigError, match="must name all in order; data, model, eval_model is missing"):
        load_recipe("more", "mini")


def test_a_scale_reference_is_replaced_by_what_the_scale_calls_so(toy):
    write(toy, "scales/mini", "refs: {numbers: stage:data}")
    write(toy, "recipes/toy", "stages: {data: {kind: count}, model: {kind: sum, data: scale:numbers}}")
    assert str(load_recipe("toy", "mini").stages["model"].data) == "stage:data"


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("stages: {data: {kind: count, nn: 3}}", "stages.data.nn: count has no setting 'nn'"),
        ("stages: {data: {kind: count, n: many}}", "stages.data.n: .*valid integer.*'many'"),
        ("stages: {data: {kind: cuont}}", "'cuont' is no kind of stage"),
        ("stages: {data: [1]}", "no kind of stage"),
        ("stagse: {}", "there is no setting 'stagse'"),
        ("stages: {model: {kind: sum, data: 'stage:data'}, data: {kind: count}}", "stage:data comes later"),
        ("stages: {model: {kind: sum, data: 'stage:dta'}}", "there is no stage 'dta'"),
        (
            "stages: {data: {kind: count}, look: {kind: look, model: 'stage:data'}}",
            "is a dataset, a checkpoint belongs",
        ),
        ("stages: {model: {kind: sum, data: 'hub:a/b@main'}}", "is a checkpoint, a dataset belongs here"),
        ("stages: {model: {kind: sum, data: 'card:no_such_card'}}", "no_such_card"),
        ("stages: {model: {kind: sum, data: 'hub:a/b'}}", "does not have the form hub:ORG/NAME@REVISION"),
        ("stages: {model: {kind: sum, data: 'data'}}", "'data' is not a reference"),
        ("stages: {model: {kind: sum, data: 3}}", "a reference is text"),
        ("stages: {model: {kind: sum}}", "stages.model.data: Field required"),
        ("stages: {model: {kind: sum, data: 'scale:numbers'}}", "the scale has no 'numbers'"),
        ("stages: {model: {kind: sum, data: 'run:no/model'}}", "there is no artifact at"),
        ("stages: {a: [", "line 1, column"),
        ("- a\n- b", "a mapping is needed"),
        ("extends: nothing", "there is no recipe 'nothing'"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_sentence(toy, r1, recipe, sentence):
    write(toy, "recipes/toy", recipe)
    with pytest.raises(PipelineError, match=sentence):
        load_recipe("toy", "mini")
    code, output = r1("plan", "toy")
    assert code == 2
    assert output.startswith("error: ")
    assert "Traceback" not in output


def test_a_typo_is_answered_with_the_nearest_word(toy, r1):
    assert "did you mean 'n'?" in r1("plan", "toy", "--args", "stages.data.nn=3")[1]
    assert "did you mean 'toy'?" in r1("plan", "toyy")[1]
    assert "did you mean 'mini'?" in r1("plan", "toy", "--scale", "mimi")[1]
    assert "did you mean 'model'?" in r1("stage", "toy", "--stage", "modell")[1]


def test_args_that_are_no_assignment_are_refused(toy, r1):
    code, output = r1("plan", "toy", "--args", "seed")
    assert code == 2
    assert "'seed' is not of the form NAME=VALUE" in output


def test_a_run_reference_starts_from_another_runs_stage(toy, r1):
    r1("run", "toy", "--run", "first")
    write(toy, "recipes/second", "stages: {model: {kind: sum, data: 'run:first/data', rate: 3.0}}")
    assert r1("run", "second")[0] == 0
    with pytest.raises(ReferenceError, match="is a checkpoint, a dataset belongs here"):
        load_recipe("second", "mini", args=["stages.model.data=run:first/model"])


def test_numbers_and_words_are_read_as_people_write_them():
    text = "rate: 1e-5\nlanguage: no\nflag: true\ncount: 3\nday: 2026-01-01"
    assert parse_yaml(text, "here") == {
        "rate": 1e-5,
        "language": "no",
        "flag": True,
        "count": 3,
        "day": "2026-01-01",
    }


def test_mappings_merge_and_lists_are_replaced():
    assert merged({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}}) == {"a": {"b": 1, "c": [2]}}
    assert merged({"a": {"b": 1}}, {"a": None}) == {"a": None}
    assert parse_assignments(["a.b=1", "a.c=[2]"]) == {"a": {"b": 1, "c": [2]}}


def test_every_kind_of_stage_names_itself_and_what_it_makes():
    assert all(cls.kind == kind and cls.makes in ("checkpoint", "dataset", "metrics") for kind, cls in STAGES.items())
