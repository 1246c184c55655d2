"""Killed at any flush, rename or manifest, a run goes on and ends with the same artifacts."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli, durable, worker
from pipeline.artifact import is_whole, load, publish, seal
from pipeline.durable import whole_file
from pipeline.recipe import load_recipe
from pipeline.runner import _prepare_partial
from tests.torture import different

KINDS = ("fsync", "rename", "manifest", "publish")
RUN = ["run", "toy", "--until", "data", "--run"]


def ends(at: str, function: Any, *words: Any) -> int:
    """The exit code of a process that calls `function` and is killed at this point, if it comes to it."""
    process = multiprocessing.get_context("fork").Process(target=_call, args=(at, function, *words))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def _call(at: str, function: Any, *words: Any) -> None:
    os.environ["R1_KILL_AT"] = at
    durable._passed.clear()
    function(*words)
    os._exit(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_killed_at_any_flush_rename_or_manifest_ends_with_the_same_artifact(toy, r1, kind):
    assert r1(*RUN, "whole")[0] == 0

    def make_stage(kill_at: str) -> int:
        recipe = load_recipe("toy", "mini", "killed")
        _prepare_partial(recipe, "data")
        shutil.copy(toy / "runs/whole/recipe.json", recipe.folder)
        return ends(f"data/{kill_at}", worker.run_one, recipe.folder, "data")

    kill_at_every(kind, make_stage, toy, r1)


@pytest.mark.parametrize("kind", ["fsync", "rename"])
def test_a_runner_killed_at_any_flush_or_rename_of_its_own_goes_on(toy, r1, kind):
    assert r1(*RUN, "whole")[0] == 0
    kill_at_every(kind, lambda kill_at: ends(f"runner/{kill_at}", cli.main, [*RUN, "killed"]), toy, r1)


def kill_at_every(kind: str, attempt: Callable[[str], int], toy: Path, r1: Any) -> None:
    """Kills `attempt` at its first, second, … point of this kind until none is left; each run goes on to the same."""
    for number in count(1):
        exit_code = attempt(f"{kind}:{number}")
        if exit_code == 0:
            break
        assert exit_code == -signal.SIGKILL
        assert r1(*RUN, "killed")[0] == 0
        assert_same(toy, f"{kind}:{number}")
    assert number > 1


def assert_same(toy: Path, at: str) -> None:
    """The killed run ended like the whole one and left nothing lying about; it is deleted."""
    assert set(different(toy / "runs/whole/data", toy / "runs/killed/data")) <= {"data/tries"}, at  # they are counted
    assert not [*(toy / "runs/killed").glob("*.partial"), *(toy / "runs/killed").glob("*.old*")], at
    shutil.rmtree(toy / "runs/killed")


def test_what_a_dead_writer_left_behind_is_no_part_of_an_artifact(tmp_path):
    partial = tmp_path / "x.partial"
    (partial / "rows").mkdir(parents=True)
    for name in (".manifest.json.tmp", "rows/.part-0.parquet.tmp", "rows/part-0.parquet"):
        (partial / name).write_text("torn")
    artifact = publish(partial, tmp_path / "x", {"artifact": "dataset", "fingerprint": "f"})
    assert set(artifact.manifest["files"]) == {"rows/part-0.parquet"}
    assert is_whole(artifact.path)
    assert not list(artifact.path.rglob(".*"))


def test_who_may_read_the_folder_may_read_what_is_sealed_in_it(tmp_path):
    for name, mode in (("open", 0o755), ("shut", 0o700)):
        weights = tmp_path / name / "model.safetensors"
        weights.parent.mkdir()
        weights.parent.chmod(mode)
        weights.touch(0o600)
        seal(weights.parent)
        assert weights.stat().st_mode & 0o777 == 0o600 | mode & 0o444


def test_scratch_is_neither_sealed_nor_published_and_goes_only_after_the_manifest(tmp_path):
    partial = tmp_path / "x.partial"
    (partial / "checkpoints/checkpoint-1").mkdir(parents=True)
    (partial / "weights").write_text("1")
    seal(partial, scratch=["checkpoints"])
    assert is_whole(partial) and (partial / "checkpoints/checkpoint-1").is_dir()
    publish(partial, tmp_path / "x", {"artifact": "checkpoint", "fingerprint": "f"}, scratch=["checkpoints"])
    assert [path.name for path in sorted((tmp_path / "x").iterdir())] == ["manifest.json", "weights"]


def test_a_file_that_could_not_be_written_to_its_end_leaves_the_old_one_and_no_trace(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.json") as file:
        file.write("new")
        raise RuntimeError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_stage_killed_after_its_manifest_is_not_made_again(toy, r1, monkeypatch):
    monkeypatch.setenv("R1_KILL_AT", "data/publish:1")
    assert r1("run", "toy")[0] == 2
    monkeypatch.delenv("R1_KILL_AT")
    assert "at its end: only its name is missing" in r1("plan", "toy")[1]
    assert r1("run", "toy")[0] == 0
    assert Path(load(toy / "runs/toy-mini/data").path, "tries").read_text() == "x"
