"""Recipes: the layers, the graph, and one clear sentence for every mistake."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, PipelineError, ReferenceError
from pipeline.places import CONFIGS
from pipeline.plan import _without_common
from pipeline.recipe import _at_scale, load_recipe
from pipeline.settings import merged, parse_assignments, parse_yaml, read_yaml
from pipeline.written import Scale, names
from stages import STAGES

KINDS = ("checkpoint", "dataset", "metrics", "reward_model")


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


def test_args_for_a_kind_win_over_recipe_and_scale_and_those_for_a_stage_over_them(toy):
    write(toy, "scales/mini", "stages: {model: {rate: 3.0}}")
    write(toy, "recipes/toy", "stages: {data: {kind: count}, model: {kind: sum, data: stage:data, rate: 4.0}}")
    assert load_recipe("toy", "mini", args=["sum.rate=7.0"]).stages["model"].rate == 7.0
    assert load_recipe("toy", "mini", args=["stages.model.rate=8.0", "sum.rate=7.0"]).stages["model"].rate == 8.0


def test_args_for_a_kind_reach_every_stage_of_it() -> None:
    found = load_recipe("r1-full", "mini", args=["grpo.problems=[card:mini_countdown]", "grpo.max_steps=3"])
    made = [stage for stage in found.stages.values() if stage.kind == "grpo"]
    assert {(stage.max_steps, *map(str, stage.problems)) for stage in made} == {(3, "card:mini_countdown")}


@pytest.mark.parametrize(
    ("arg", "sentence", "hint"),
    [
        ("sft.max_steps=3", "ARGS: recipe r1-zero has no stage of kind 'sft'", "there is: evaluate, grpo"),
        ("stages.r1_zer.max_steps=3", "ARGS: recipe r1-zero has no stage 'r1_zer'", "did you mean 'r1_zero'?"),
        ("num_iterations=3", "ARGS: 'num_iterations' is a setting of stages", "it is for: grpo.num_iterations"),
        ("extends=dapo", "ARGS: there is no setting 'extends'", "there is: beside,"),
        ("scale=mini", "ARGS: 'scale' is no setting", "it is a word beside ARGS: SCALE=mini"),
        ("grpo.problems=[]", "problems: List should have at least 1 item", ""),
        ("grpo.token_budget=-1", "token_budget: a micro-batch has 1 token at least; or `auto`", ""),
        ("grpo=7", "grpo: settings belong here, not 7", "e.g. grpo.seed=7"),
        ("seed = 7", "ARGS: 'seed = 7' is not of the form NAME=VALUE", "without spaces"),
    ],
)
def test_nothing_in_args_is_passed_over_in_silence(arg: str, sentence: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("r1-zero", "mini", args=[arg])
    assert sentence in caught.value.message and hint in caught.value.hint


@pytest.mark.parametrize("number", [".inf", "inf", "nan", "1e400", "1e22", "9999999999999999999999"])
@pytest.mark.parametrize("setting", ["grpo.learning_rate=", "seed=", "grpo.rewards=[{kind: accuracy, weight: "])
def test_a_number_that_nothing_can_compute_with_is_refused(setting: str, number: str) -> None:
    with pytest.raises(ConfigError, match=r"seed|learning_rate|weight"):
        load_recipe("r1-zero", "mini", args=[setting + number + "}]" * ("{" in setting)])


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


def test_a_recipe_cannot_be_extended_from_the_command_line(toy):
    with pytest.raises(ConfigError, match="there is no setting 'extends'"):
        load_recipe("toy", "mini", args=["extends=more"])


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
            "is of the kind dataset, one of the kind checkpoint",
        ),
        (
            "stages: {model: {kind: sum, data: 'hub:a/b@main'}}",
            "is of the kind checkpoint, one of the kind dataset belongs here",
        ),
        ("stages: {model: {kind: sum, data: 'card:no_such_card'}}", "no_such_card"),
        ("stages: {model: {kind: sum, data: 'hub:a/b'}}", "does not have the form hub:ORG/NAME@REVISION"),
        ("stages: {model: {kind: sum, data: 'data'}}", "'data' is not a reference"),
        ("stages: {model: {kind: sum, data: 3}}", "a reference is text"),
        ("stages: {model: {kind: sum}}", "stages.model.data: Field required"),
        ("stages: {model: {kind: sum, data: 'scale:numbers'}}", "the scale has no 'numbers'"),
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


@pytest.mark.parametrize(
    ("arg", "sentence", "hint"),
    [
        ("grpo.lora.rnk=3", "lora.rnk: lora has no setting 'rnk'", "did you mean 'rank'? there is: rank, alpha,"),
        ("grpo.rewards=[{kind: format, weigth: 3}]", "format has no setting 'weigth'", "did you mean 'weight'?"),
        ("grpo.rewards=[{kind: acuracy}]", "rewards.0: there is no kind 'acuracy'", "did you mean 'accuracy'?"),
        ("grpo.rewards=[{kind:accuracy}]", "rewards.0: its kind is not said", "with a space behind the colon"),
        ("grpo.rewards=[accuracy]", "rewards.0: its kind is not said", "write `{kind: NAME}`"),
        ("grpo.rewards=accuracy", "rewards: Input should be a valid list (given: 'accuracy')", ""),
        ("grpo.optim=adamw", "stages.r1_zero.optim: Input should be 'adamw_torch', ", ""),
        ("grpo.lr_scheduler_type=cosin", "lr_scheduler_type: Input should be 'constant', ", ""),
        (
            "grpo.max_steps=-3",
            "max_steps: Input should be greater than or equal to 1",
            "`make show`, without this, lists",
        ),
        ("grpo.problems=card:x", "problems: Input should be a valid list", "write a list: [card:x]"),
        ("grpo.num_generatons=3", "grpo has no setting 'num_generatons'", "did you mean 'num_generations'?"),
    ],
)
def test_a_mistake_deep_inside_a_setting_is_told_with_the_names_there(arg: str, sentence: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("r1-zero", "mini", args=[arg])
    assert sentence in caught.value.message and hint in caught.value.hint


@pytest.mark.parametrize(("kind", "recipe", "scale"), [("recipes", "typo", "mini"), ("scales", "r1-zero", "typo")])
def test_the_hint_names_every_recipe_and_every_scale(kind: str, recipe: str, scale: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, scale)
    assert [name for name in names(kind) if name not in caught.value.hint] == []


@pytest.mark.parametrize("published", ["a notebook", "{source: a}", "{source: a, curves: {pass_at_1: {soon: 0.5}}}"])
def test_a_published_result_has_a_source_and_points(toy, published):
    write(toy, "recipes/toy", f"published: {published}\nstages: {{data: {{kind: count}}}}")
    with pytest.raises(ConfigError, match=r"recipe toy: published"):
        load_recipe("toy", "mini")


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
    with pytest.raises(ReferenceError, match="is of the kind checkpoint, one of the kind dataset belongs here"):
        load_recipe("second", "mini", args=["stages.model.data=run:first/model"])


def test_a_stage_of_another_run_can_stand_in_for_one_of_this_recipe(toy, r1):
    assert r1("run", "toy", "--run", "first")[0] == 0
    taken = ["stages.data=run:first/data", "stages.eval_model=run:first/eval_model"]
    recipe = load_recipe("toy", "mini", "second", taken)
    assert list(recipe.stages) == ["model"] and str(recipe.stages["model"].data) == "run:first/data"
    assert recipe.fingerprints["model"] == load_recipe("toy", "mini").fingerprints["model"]
    code, output = r1("run", "toy", "--run", "second", "--args", *taken)
    assert code == 0 and "data is not made here: it is taken from run:first/data" in " ".join(output.split())
    assert not (toy / "runs" / "second" / "data").exists()
    stages = json.loads((toy / "runs" / "second" / "recipe.json").read_text())["stages"]
    assert list(stages) == ["data", "model", "eval_model"]
    assert stages["data"] == {"kind": "count", "taken": "run:first/data"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("stages.dta=run:first/data", "did you mean 'data'"),
        ("stages.data=stage:model", "is no stage of another run"),
        ("stages.data=run:first", "does not have the form run:RUN/STAGE"),
    ],
)
def test_what_cannot_stand_in_for_a_stage_is_refused(toy, r1, given, sentence):
    code, output = r1("plan", "toy", "--args", given)
    assert code == 2 and sentence in output


def test_the_scales_name_stands_in_run_references_and_in_what_is_shown_beside(toy):
    write(toy, "recipes/toy", "beside: 'full-{scale}'\nstages: {model: {kind: sum, data: 'run:full-{scale}/data'}}")
    recipe = load_recipe("toy", "mini")
    assert str(recipe.stages["model"].data) == "run:full-mini/data"
    assert recipe.beside == recipe.as_json()["beside"] == "full-mini"


def test_a_list_takes_in_what_a_scale_reference_in_it_stands_for(toy):
    scale = Scale(name="mini", refs={"numbers": ["card:a", "run:full-{scale}/data"], "one": "card:b"})
    written = {"data": ["stage:x", "scale:numbers", "scale:one"], "words": "{scale}"}
    assert _at_scale(written, scale, "model") == {
        "data": ["stage:x", "card:a", "run:full-mini/data", "card:b"],
        "words": "{scale}",
    }


def test_a_run_that_is_not_there_yet_can_be_planned_and_shown_but_not_read(toy, r1):
    write(toy, "recipes/later", "stages: {model: {kind: sum, data: 'run:toy-mini/data'}}")
    sentence = "run:toy-mini/data is not there yet"
    code, output = r1("plan", "later")
    assert code == 0
    assert f"note: {sentence}; make it first: make toy UNTIL=data" in output
    assert r1("show", "later")[0] == 0
    code, output = r1("run", "later")
    assert code == 2
    assert f"error: {sentence}\nhint: make it first: make toy UNTIL=data" in output
    assert not (toy / "runs/later-mini/recipe.json").exists()
    r1("run", "toy", "--until", "data")
    assert r1("run", "later")[0] == 0


def test_a_source_that_was_deleted_leaves_what_was_made_from_it_done(toy, r1):
    r1("run", "toy", "--run", "first")
    write(toy, "recipes/second", "stages: {model: {kind: sum, data: 'run:first/data', rate: 3.0}}")
    r1("run", "second")
    (toy / "runs/first").rename(toy / "runs/moved")
    _, output = r1("plan", "second")
    assert "done in" in output and "note:" not in output
    assert "rate 3.0 → 4.0" in r1("plan", "second", "--args", "sum.rate=1.0", "stages.model.rate=4.0")[1]


def test_a_source_that_was_made_again_makes_what_rests_on_it_stale(toy, r1):
    r1("run", "toy", "--run", "first")
    write(toy, "recipes/second", "stages: {model: {kind: sum, data: 'run:first/data'}}")
    r1("run", "second")
    r1("run", "toy", "--run", "first", "--args", "stages.data.n=4", "--rebuild", "data")
    assert "stale (data run:first/data (" in r1("plan", "second")[1]


def test_a_plan_names_only_the_references_that_changed():
    same, gone, new = ({"ref": f"stage:{name}"} for name in "abc")
    assert _without_common(("data", [same, gone], [new, same])) == ("data", [gone], [new])
    assert _without_common(("data", [same, gone], [gone, same])) == ("data", [same, gone], [gone, same])


@pytest.mark.parametrize("text", ["", "stages: {}", "description: nothing"])
def test_a_recipe_without_stages_is_told_as_what_it_is(toy, r1, text):
    write(toy, "recipes/second", text)
    code, output = r1("run", "second")
    assert code == 2 and "recipe second makes nothing: it has no stages\nhint: name some under `stages:`" in output


def test_from_and_until_keep_to_a_part_of_the_recipe(toy):
    recipe = load_recipe("toy", "mini")
    assert recipe.between() == ["data", "model", "eval_model"]
    assert recipe.between("model") == ["model", "eval_model"]
    assert recipe.between(last="model") == ["data", "model"]
    assert recipe.between("model", "model") == ["model"]
    with pytest.raises(ConfigError, match="FROM=model comes after UNTIL=data"):
        recipe.between("model", "data")
    with pytest.raises(ConfigError, match="UNTIL=modl: recipe toy has no such stage"):
        recipe.between(last="modl")


def test_a_stage_rests_on_all_that_led_to_it(toy):
    assert load_recipe("toy", "mini").beneath(["model"]) == {"data", "model"}


def test_minutes_of_a_scale_must_be_numbers(toy):
    write(toy, "scales/mini", "minutes: {data: long}")
    with pytest.raises(ConfigError, match=r"scale mini: minutes\.data: .*'long'"):
        load_recipe("toy", "mini")


@pytest.mark.parametrize("said", ["stages: {modle: {rate: 2.0}}", "minutes: {modle: 3}"])
def test_a_scale_that_speaks_of_a_stage_no_recipe_has_is_told_the_nearest(toy, said):
    write(toy, "recipes/other", "stages: {judge: {kind: count}}")
    write(toy, "recipes/torn", "stages: [")
    write(toy, "scales/mini", said)
    with pytest.raises(ConfigError, match="scale mini: no recipe has a stage 'modle'") as caught:
        load_recipe("toy", "mini")
    assert caught.value.hint == "did you mean 'model'? there is: data, model, eval_model, judge"
    write(toy, "scales/mini", said.replace("modle", "judge"))
    assert load_recipe("toy", "mini").stages["model"].rate == 1.0


def test_numbers_and_words_are_read_as_people_write_them():
    text = "rate: 1e-5\nlanguage: no\nflag: true\ncount: 3\nday: 2026-01-01"
    assert parse_yaml(text, "here") == {
        "rate": 1e-5,
        "language": "no",
        "flag": True,
        "count": 3,
        "day": "2026-01-01",
    }
    assert parse_yaml("[007, 1_000, 1:30, -5, 0]", "here") == ["007", "1_000", "1:30", -5, 0]


def test_a_name_that_stands_twice_in_a_mapping_is_refused_and_one_over_a_merged_one_is_not():
    with pytest.raises(ConfigError, match=r"here, line 3, column 1: .*'a' stands here twice"):
        parse_yaml("a: 1\nb: {c: 2}\na: 3", "here")
    assert parse_yaml("x: &x {a: 1}\ny: {<<: *x, a: 2}\nz: {<<: *x, a: 3}", "here")["z"] == {"a": 3}


def test_mappings_merge_and_lists_are_replaced():
    assert merged({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}}) == {"a": {"b": 1, "c": [2]}}
    assert merged({"a": {"b": 1}}, {"a": None}) == {"a": None}
    assert parse_assignments(["a.b=1", "a.c=[2]"]) == {"a": {"b": 1, "c": [2]}}
    assert parse_assignments([]) == {}


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """What `make` would do; inside `make test` it would also end its output with the folder that it leaves."""
    command = ["make", "--no-print-directory", "-n", *words]
    return subprocess.run(command, cwd=CONFIGS.parent, capture_output=True, text=True)


def test_what_make_hands_over_is_what_was_written_with_spaces_braces_and_quotes() -> None:
    written = "a.b=[{kind: x}, {kind: y,w: 0.1}]  c={d:1,e:2} f='two words'"
    command = shlex.split(make("show", f"ARGS={written}", "RUN=a b;c'd", "RECIPE=-x").stdout.splitlines()[-1])
    found = parse_assignments(word.removeprefix("--args=") for word in command if word.startswith("--args="))
    assert found["a"] == {"b": [{"kind": "x"}, {"kind": "y", "w": 0.1}]} and found["f"] == "two words"
    assert parse_assignments(written.split()) == found  # as a shell takes it apart
    assert "--run=a b;c'd" in command and command[-2:] == ["--", "-x"]


@pytest.mark.parametrize(
    ("verb", "word"),
    [
        *[
            ("r1-zero", "scale=mini"),
            ("r1-zero", "SEED=7"),
            ("plan", "STAGE=x"),
            ("plan", "REBUILD=x"),
            ("stage", "FROM=x"),
        ],
        *[("verify", "ARGS=seed=3"), ("report", "ARGS=seed=3"), ("show", "UNTIL=x")],
    ],
)
def test_a_word_that_a_verb_does_not_read_stops_make(verb: str, word: str) -> None:
    done = make(verb, word)
    assert done.returncode == 2 and f"{word.partition('=')[0]}=… is nothing that `make {verb}` reads" in done.stderr


def test_a_verb_that_there_is_not_is_told_where_the_verbs_are() -> None:
    assert "there is no verb 'r1-zer'" in make("r1-zer").stdout


def test_every_kind_of_stage_names_itself_and_what_it_makes():
    assert all(cls.kind == kind and cls.makes in KINDS for kind, cls in STAGES.items())


def test_a_mistake_between_two_settings_is_told_without_the_whole_stage():
    with pytest.raises(ConfigError, match=r"stages\.second_sft: shares must be above 0 and sum to 1, not 1\.1$"):
        load_recipe("r1-full", "mini", args=["stages.second_sft.shares=[0.5,0.6]"])


def test_a_scale_may_size_a_stage_by_name_and_args_still_win(toy):
    write(toy, "scales/mini", "sum: {rate: 2.0}\nstages: {model: {rate: 3.0}}")
    both = "model: {kind: sum, data: stage:data}, other: {kind: sum, data: stage:data}"
    write(toy, "recipes/toy", f"stages: {{data: {{kind: count}}, {both}}}")
    stages = load_recipe("toy", "mini").stages
    assert (stages["model"].rate, stages["other"].rate) == (3.0, 2.0)
    assert load_recipe("toy", "mini", args=["stages.model.rate=4.0"]).stages["model"].rate == 4.0


def test_every_stage_that_a_scale_names_is_in_some_recipe():
    there = {
        name
        for recipe in names("recipes")
        for name in read_yaml(CONFIGS / "recipes" / f"{recipe}.yaml").get("stages", {})
    }
    named = {
        name for scale in names("scales") for name in read_yaml(CONFIGS / "scales" / f"{scale}.yaml").get("stages", {})
    }
    assert named and named <= there
