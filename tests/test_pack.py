"""Taking a run to another machine: merged weights stay behind and are the same bytes when they are made again."""

import errno
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifact import load, publish, read_json, seal, sha256, write_json
from pipeline.errors import ArtifactError
from pipeline.pack import pack, unpack
from pipeline.recipe import build_stage
from stages.engines.merging import merge_and_save
from stages.engines.models import load_classifier, load_model, load_tokenizer
from tests.test_merging import adapted
from tests.toy_model import save_toy_model


def make_run(folder: Path) -> Path:
    """A run: a base, a checkpoint and a reward model with adapters, and a stage that was stopped after six steps."""
    run_dir = folder / "runs" / "first"
    publish(save_toy_model(run_dir / "base.partial"), run_dir / "base", {"artifact": "checkpoint", "fingerprint": "b"})
    base = run_dir / "base"
    policy = {"kind": "grpo", "model": "stage:base", "problems": ["path:p"], "lora": {"rank": 8, "alpha": 16}}
    judge = {"kind": "reward_model", "model": "stage:policy", "preferences": ["path:p"], "lora": policy["lora"]}
    stages = {
        "base": {"kind": "pretrain"},
        "policy": policy,
        "judge": judge,
        "next": {**policy, "model": "stage:policy"},
    }
    publish_model(run_dir, "policy", stages["policy"], adapted(base, 0.1), base)
    on_policy = adapted(run_dir / "policy", 0.1, load=load_classifier, new_head=True)
    publish_model(run_dir, "judge", stages["judge"], on_policy, base)
    for step in (3, 6):
        checkpoint = run_dir / "next.partial" / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "optimizer.pt").write_text(f"state {step}")
        seal(checkpoint)
    write_json(run_dir / "recipe.json", {"recipe": "toy", "scale": "mini", "run": "first", "stages": stages})
    return run_dir


def publish_model(run_dir: Path, name: str, settings: dict[str, Any], model: Any, base: Path) -> None:
    partial = run_dir / f"{name}.partial"
    partial.mkdir(parents=True)
    merge_and_save(model, load_tokenizer(base), partial)
    stage = build_stage(name, settings["kind"], {k: v for k, v in settings.items() if k != "kind"})
    publish(partial, run_dir / name, {"artifact": stage.makes, "fingerprint": "f", "settings": stage.settings()})


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("packed"))


def test_a_run_arrives_with_the_same_weights_and_its_newest_checkpoint(run_dir: Path, tmp_path: Path) -> None:
    archive = pack(run_dir, tmp_path / "first.tar.gz")
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    weights = [name for name in names if name.endswith("/model.safetensors")]
    assert weights == ["first/base/model.safetensors"]  # the one that no adapter gives back
    assert [name for name in names if "checkpoint-" in name and name.endswith(".pt")] == [
        "first/next.partial/checkpoints/checkpoint-6/optimizer.pt"
    ]
    there = unpack(archive, tmp_path)
    for stage in ("policy", "judge"):
        assert sha256(there / stage / "model.safetensors") == sha256(run_dir / stage / "model.safetensors")
        assert "merged_again" not in load(there / stage, deep=True).manifest
    assert not list(tmp_path.glob(".*"))


def test_weights_that_round_differently_there_are_recorded(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "here" / "first"
    archive = pack(run_dir, tmp_path / "first.tar.gz")
    unpack(archive, copy.parent)
    manifest = read_json(copy / "policy" / "manifest.json")
    manifest["files"]["model.safetensors"]["sha256"] = "made on another kind of processor"
    write_json(copy / "policy" / "manifest.json", manifest)
    there = unpack(pack(copy, archive), tmp_path / "there")
    found = load(there / "policy", deep=True).manifest["merged_again"]
    assert found["sha256_before"] == "made on another kind of processor" and found["on"]["cores"]


def test_a_packed_run_that_was_changed_is_refused_and_leaves_no_run(run_dir: Path, tmp_path: Path) -> None:
    here = unpack(pack(run_dir, tmp_path / "first.tar.gz"), tmp_path / "here")
    (here / "policy" / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"is damaged in policy \(adapter/adapter_config.json has 2 bytes"):
        unpack(by_hand(here, tmp_path), tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())


def test_a_damaged_run_is_not_packed_and_every_damaged_stage_is_named(toy: Path, r1: Any) -> None:
    r1("run", "toy")
    run_dir = toy / "runs/toy-mini"
    (run_dir / "eval_model/metrics.json").write_text("nope")
    (run_dir / "data/rows.jsonl").unlink()
    (run_dir / "model/manifest.json").unlink()
    code, output = r1("pack", "toy-mini", "--file", str(toy / "x.tar.gz"))
    assert code == 2 and len(output.splitlines()) == 2
    assert "run 'toy-mini' is damaged in data (rows.jsonl is missing), model (model/manifest.json is missing)" in output
    assert ", eval_model (metrics.json has 4 bytes instead of" in output and "hint: REBUILD=data makes it" in output
    assert not list(toy.glob("*x.tar.gz*"))


def test_damage_to_any_finished_stage_of_a_packed_run_is_refused(
    toy: Path, r1: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    r1("run", "toy")
    (toy / "runs/toy-mini/eval_model/metrics.json").write_text("nope")
    (toy / "runs/toy-mini/model/manifest.json").write_text("{")
    by_hand(toy / "runs/toy-mini", toy)
    monkeypatch.setenv("R1_RUNS", str(toy / "there"))
    code, output = r1("unpack", str(toy / "by-hand.tar.gz"))
    assert code == 2 and "damaged in model (model/manifest.json is damaged" in output and ".unpacking" not in output
    assert "), eval_model (metrics.json has 4 bytes" in output and "hint: pack it again" in output
    assert not list((toy / "there").iterdir())


def test_unfinished_stages_and_those_kept_beside_are_packed_as_they_are(toy: Path, r1: Any, tmp_path: Path) -> None:
    r1("run", "toy", "--until", "model")
    run_dir = toy / "runs/toy-mini"
    shutil.copytree(run_dir / "model", run_dir / "model.old1")
    (run_dir / "model.old1/config.json").write_text("damaged, and therefore rebuilt")
    (run_dir / "eval_model.partial").mkdir()
    (run_dir / "eval_model.partial/completions.jsonl").write_text("{}")
    there = unpack(pack(run_dir, tmp_path / "x.tar.gz"), tmp_path / "there")
    assert (there / "eval_model.partial/completions.jsonl").is_file() and (there / "model.old1/config.json").is_file()


def test_damaged_merged_weights_are_made_again_from_their_adapter(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "here" / "first")
    (copy / "policy/model.safetensors").write_text("nope")
    for archive in (pack(copy, tmp_path / "packed.tar.gz"), by_hand(copy, tmp_path)):
        there = unpack(archive, tmp_path / f"from {archive.name}")
        assert sha256(there / "policy/model.safetensors") == sha256(run_dir / "policy/model.safetensors")


def test_a_run_that_is_there_already_is_not_touched(run_dir: Path, tmp_path: Path) -> None:
    archive = pack(run_dir, tmp_path / "first.tar.gz")
    with pytest.raises(ArtifactError, match=r"there is a run at .* already"):
        unpack(archive, run_dir.parent)
    assert load_model(run_dir / "policy", device="cpu")


def test_a_run_that_rests_on_another_asks_for_that_one_first(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1_RUNS", str(tmp_path / "there"))
    shutil.copytree(run_dir, second := tmp_path / "here/second")
    recipe = read_json(second / "recipe.json")
    recipe["stages"]["policy"]["model"] = "run:first/base"
    write_json(second / "recipe.json", recipe)
    archive = pack(second, tmp_path / "second.tar.gz")
    with pytest.raises(ArtifactError, match="rests on run:first/base, which is not here") as refused:
        unpack(archive, tmp_path / "there")
    assert "unpack that run first" in refused.value.hint and not (tmp_path / "there/second").exists()
    unpack(pack(run_dir, tmp_path / "first.tar.gz"), tmp_path / "there")
    assert load(unpack(archive, tmp_path / "there") / "policy")


def test_what_is_no_packed_run_is_one_sentence(tmp_path: Path, r1: Any) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"no archive")
    code, output = r1("unpack", str(tmp_path / "x.tar.gz"))
    assert code == 2 and "is no packed run" in output and len(output.splitlines()) == 2
    code, output = r1("unpack", str(tmp_path / "nowhere.tar.gz"))
    assert code == 2 and "is no packed run" in output
    code, output = r1("unpack", "")
    assert code == 2 and "name it: FILE=…" in output


def test_an_archive_of_others_is_no_packed_run_and_is_not_extracted(tmp_path: Path, r1: Any, toy: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("mine")
    archive = by_hand(tmp_path / "in", tmp_path)
    code, output = r1("unpack", str(archive))
    assert code == 2 and f"error: {archive} is no packed run: there is no recipe.json in its folder in\n" in output
    assert "hint: make one with `make pack RUN=…`" in output and not list((toy / "runs").iterdir())


def test_an_archive_needs_a_folder_that_is_there(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no folder .*nowhere for the archive"):
        pack(run_dir, tmp_path / "nowhere" / "first.tar.gz")
    with pytest.raises(ArtifactError, match=r" is a folder\n"):
        pack(run_dir, tmp_path)


def test_what_is_no_regular_file_is_not_replaced_by_an_archive(run_dir: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for name in ("fifo", "link"):
        with pytest.raises(ArtifactError, match=rf"{name} is there and is no regular file\nhint: .*FILE=…"):
            pack(run_dir, tmp_path / name)
    assert (tmp_path / "fifo").is_fifo() and (tmp_path / "link").is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_one_sentence(
    toy: Path, r1: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    r1("run", "toy", "--until", "data")
    elsewhere, open_file = tmp_path_factory.mktemp("elsewhere"), Path.open

    def refuses(path: Path, *words: Any, **options: Any) -> Any:
        if path.parent == elsewhere:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, *words, **options)

    monkeypatch.setattr(Path, "open", refuses)
    code, output = r1("pack", "toy-mini", "--file", str(elsewhere / "x.tar.gz"))
    assert code == 2 and len(output.splitlines()) == 2
    assert f"error: {elsewhere / 'x.tar.gz'} cannot be written: Permission denied\nhint: " in output
    assert "FILE=…" in output and ".tmp" not in output


def test_a_packed_file_cannot_write_outside_the_runs(run_dir: Path, tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(run_dir / "recipe.json", "first/recipe.json")
        tar.add(run_dir / "recipe.json", "first/../../../outside.json")
    with pytest.raises(ArtifactError, match="is no packed run"):
        unpack(archive, tmp_path / "runs")
    assert not list(tmp_path.rglob("outside.json"))


def test_an_archive_that_tar_made_of_a_whole_folder_is_understood(run_dir: Path, tmp_path: Path) -> None:
    here = unpack(pack(run_dir, tmp_path / "first.tar.gz"), tmp_path / "here")
    with tarfile.open(tmp_path / "of-runs.tar.gz", "w:gz") as tar:
        tar.add(here.parent, ".")
    assert load(unpack(tmp_path / "of-runs.tar.gz", tmp_path / "there") / "policy", deep=True)


@pytest.mark.parametrize(
    "written", ["", "[]", "{}", '{"stages": []}', '{"stages": {"policy": 1}}', '{"stages": {"policy": {}}}']
)
def test_a_packed_run_without_a_readable_recipe_is_a_sentence(written: str, run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^recipe.json of the packed run .*\nhint: pack it again"):
        unpack(with_recipe(written, run_dir, tmp_path), tmp_path / "there")
    assert not (tmp_path / "there" / "first").exists()


def test_a_packed_run_cannot_name_a_stage_outside_itself(run_dir: Path, tmp_path: Path) -> None:
    victim = unpack(pack(run_dir, tmp_path / "first.tar.gz"), tmp_path / "victim") / "policy"
    (victim / "model.safetensors").unlink()
    policy = read_json(run_dir / "recipe.json")["stages"]["policy"]
    for name in (str(victim), "../../../victim/first/policy"):
        evil = with_recipe(json.dumps({"stages": {name: policy}}), run_dir, tmp_path)
        with pytest.raises(ArtifactError, match=r"recipe.json"):
            unpack(evil, tmp_path / "there")
        assert not (victim / "model.safetensors").exists()


def test_a_packed_run_holds_no_links_and_one_with_links_is_refused(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "copy" / "first")
    (copy / "note.txt").symlink_to(run_dir / "recipe.json")
    assert not (unpack(pack(copy, tmp_path / "first.tar.gz"), tmp_path / "here") / "note.txt").is_symlink()
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        (copy / "next.partial.link").symlink_to("../another-run/next.partial")  # leads there once it is unpacked
        tar.add(copy, "first")
    with pytest.raises(ArtifactError, match="link"):
        unpack(tmp_path / "evil.tar.gz", tmp_path / "there")


def with_recipe(written: str, run_dir: Path, tmp_path: Path) -> Path:
    """The packed run with another `recipe.json`."""
    copy = shutil.copytree(run_dir, tmp_path / "copy" / "first", dirs_exist_ok=True)
    (copy / "recipe.json").write_text(written)
    return by_hand(copy, tmp_path)


def by_hand(run_dir: Path, tmp_path: Path) -> Path:
    """The run as `tar` packs it, which looks at nothing."""
    with tarfile.open(tmp_path / "by-hand.tar.gz", "w:gz") as tar:
        tar.add(run_dir, run_dir.name)
    return tmp_path / "by-hand.tar.gz"
