"""`make verify`: every byte of the finished work, damage by name; and what is compared at every use."""

import json
from pathlib import Path

import pytest

from pipeline.artifact import SMALL, checkpoints_in, load, publish
from pipeline.errors import ArtifactError


def flip(file: Path, at: int = 0) -> None:
    """Changes one bit and nothing else."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_whole_work_is_called_whole_with_its_files_and_bytes(toy, r1):
    r1("run", "toy")
    code, output = r1("verify", "toy-mini")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()] == ["data", "model", "eval_model"]
    assert all(line.endswith("whole") for line in output.splitlines())


def test_every_damage_of_every_stage_is_named_and_the_exit_code_is_2(toy, r1):
    r1("run", "toy")
    folder = toy / "runs/toy-mini"
    flip(folder / "data/rows.jsonl")
    (folder / "data/tries").unlink()
    (folder / "model/manifest.json").write_bytes(bytes(100))
    code, output = r1("verify", "toy-mini")
    assert code == 2
    assert "  rows.jsonl has changed (its sha256 differs)" in output
    assert "  tries is missing" in output
    assert "model/manifest.json is damaged" in output
    assert "error: run 'toy-mini' is damaged in data, model\nhint: REBUILD=data" in output


def test_a_flipped_bit_in_a_small_file_is_found_at_use_and_never_used(toy, r1):
    r1("run", "toy")
    flip(toy / "runs/toy-mini/model/config.json")
    code, output = r1("run", "toy")
    assert code == 2
    assert "stage model of run 'toy-mini' is damaged: config.json has changed" in output


def test_a_flipped_bit_in_a_large_file_is_found_by_verify(tmp_path):
    partial = tmp_path / "x.partial"
    partial.mkdir()
    (partial / "weights").write_bytes(bytes(SMALL + 1))
    publish(partial, tmp_path / "x", {"artifact": "checkpoint", "fingerprint": "f"})
    flip(tmp_path / "x/weights", at=SMALL)
    load(tmp_path / "x")
    with pytest.raises(ArtifactError, match="weights has changed"):
        load(tmp_path / "x", deep=True)
    (tmp_path / "x/weights").write_bytes(bytes(SMALL))
    with pytest.raises(ArtifactError, match=f"weights has {SMALL} bytes instead of {SMALL + 1}"):
        load(tmp_path / "x")


@pytest.mark.parametrize(
    "manifest",
    [
        *("", "{", "[]", "{}", "\0\0\0", "[" * 100_000, '{"format": 1}', '{"format": 1, "files": []}'),
        *('{"format": 1, "files": {"a": 1}}', '{"format": 1, "files": {"a": {"size": "1"}}}'),
    ],
)
def test_a_manifest_that_is_none_is_damage_and_no_traceback(toy, r1, manifest):
    r1("run", "toy", "--until", "data")
    (toy / "runs/toy-mini/data/manifest.json").write_text(manifest)
    for verb in (["plan", "toy"], ["run", "toy"], ["verify", "toy-mini"]):
        code, output = r1(*verb)
        assert code == (0 if verb[0] == "plan" else 2)
        assert "damaged" in output


@pytest.mark.parametrize("recipe", [None, "", "[]", '{"stages": 3}'])
def test_the_own_command_of_a_finished_run_writes_a_lost_recipe_json_again(toy, r1, recipe):
    r1("run", "toy")
    file = toy / "runs/toy-mini/recipe.json"
    written = file.read_text()
    file.write_text(recipe) if recipe is not None else file.unlink()
    for verb in (["verify", "toy-mini"], ["pack", "toy-mini", "--file", str(toy / "x.tar.gz")]):
        code, output = r1(*verb)
        assert code == 2 and f"error: {file} " in output and "there is no run" not in output
        assert "hint: the run's own command writes it again: make RECIPE RUN=toy-mini" in output
    assert r1("run", "toy")[0] == 0
    assert file.read_text() == written and r1("verify", "toy-mini")[0] == 0


def test_a_finished_run_keeps_the_recipe_json_it_has(toy, r1):
    r1("run", "toy")
    file = toy / "runs/toy-mini/recipe.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"description": "as it was made"}))
    assert r1("run", "toy")[0] == 0
    assert json.loads(file.read_text())["description"] == "as it was made"


@pytest.mark.parametrize("recipe", ["", "{", "[]", "{}", '{"stages": 3}'])
def test_a_recipe_json_that_names_no_stages_is_a_sentence_and_the_report_goes_by_the_folders(toy, r1, recipe):
    r1("run", "toy")
    (toy / "runs/toy-mini/recipe.json").write_text(recipe)
    code, output = r1("verify", "toy-mini")
    assert code == 2 and "recipe.json" in output and "there is no run" not in output
    assert r1("report", "toy-mini")[0] == 0


def test_a_run_that_does_not_exist_is_a_sentence(toy, r1):
    r1("run", "toy", "--until", "data")
    for verb in ("verify", "report", "pack"):
        code, output = r1(verb, "toy-min")
        assert code == 2 and "there is no run 'toy-min'" in output and "there is: toy-mini" in output
        for name in ("../runs/toy-mini", "."):
            code, output = r1(verb, name)
            assert code == 2 and f"a run cannot be called {name!r}" in output


def test_a_folder_with_nothing_but_the_lock_of_a_refused_command_is_no_run(toy, r1):
    r1("run", "toy", "--until", "data")
    (toy / "runs/refused").mkdir()
    (toy / "runs/refused/.lock").write_text("{}")
    for verb in ("verify", "report", "pack"):
        code, output = r1(verb, "refused")
        assert code == 2 and "error: there is no run 'refused'" in output and "toy-mini" in output
    assert [path.name for path in (toy / "runs/refused").iterdir()] == [".lock"]


def test_the_manifest_of_another_version_is_a_sentence(toy, r1):
    r1("run", "toy", "--until", "data")
    file = toy / "runs/toy-mini/data/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    assert "has format 99, this version reads 1" in r1("verify", "toy-mini")[1]


def test_a_folder_that_is_only_called_like_a_checkpoint_is_passed_over(tmp_path):
    for name in ("checkpoint-2", "checkpoint-x", "checkpoint-²"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-2"]
