"""Training checkpoints: whole or passed over, whatever was done to their files."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.artifact import checkpoints_in, is_whole, newest_checkpoint
from pipeline.errors import ConfigError, Interrupted, ResourceError
from stages.engines.checkpoints import in_the_making
from stages.grpo import GRPO
from stages.training import Lora
from tests.test_grpo import curves, same, toy, train
from tests.toy_model import save_toy_model

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "grpo_state.pt")
# What no checkpoint of transformers holds by itself: another epoch, a buffer between two updates, a refreshed
# reference, the random numbers of dropout.
STAGE: dict[str, object] = {"max_steps": 7, "num_iterations": 2, "save_steps": 1, "beta": 0.1}
STAGE |= {"ref_model_sync_steps": 3, "lora": None}


def missing(file: Path) -> None:
    file.unlink()


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zeroed(file: Path) -> None:
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2] + bytes(size - size // 2))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`, and `cut` after step 5 with the checkpoints 4 and 5."""
    folder = tmp_path_factory.mktemp("runs")
    train(stage(), base, folder / "whole")
    with pytest.raises(Interrupted):
        train(stage(), base, folder / "cut", stop_after=5)
    assert [path.name for path in checkpoints_in(folder / "cut/checkpoints")] == ["checkpoint-4", "checkpoint-5"]
    return folder


def stage() -> GRPO:
    return toy(**STAGE)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from stages.engines.models import load_model

    return load_model(folder, device="cpu").state_dict()


@pytest.mark.parametrize("damage", [missing, truncated, zeroed], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_torn_checkpoint_is_passed_over_with_a_word_and_the_result_is_the_same(
    name: str,
    damage: Callable[[Path], None],
    runs: Path,
    base: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(runs / "cut", tmp_path / "cut")
    damage(tmp_path / "cut/checkpoints/checkpoint-5" / name)
    newest, torn = newest_checkpoint(tmp_path / "cut/checkpoints")
    assert newest and newest.name == "checkpoint-4" and [path.name for path in torn] == ["checkpoint-5"]
    with caplog.at_level(logging.WARNING, "stages.engines.checkpoints"):
        resumed = train(stage(), base, tmp_path / "cut")
    assert "checkpoint-5 is passed over: " in caplog.text
    assert same(resumed, weights(runs / "whole"))
    assert curves(tmp_path / "cut") == curves(runs / "whole")


def test_when_every_checkpoint_is_torn_training_begins_again_and_ends_the_same(
    runs: Path, base: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "cut", tmp_path / "cut")
    for folder in checkpoints_in(tmp_path / "cut/checkpoints"):
        zeroed(folder / "optimizer.pt")
    assert same(train(stage(), base, tmp_path / "cut"), weights(runs / "whole"))
    assert curves(tmp_path / "cut") == curves(runs / "whole")


def test_there_are_two_whole_checkpoints_at_any_moment_after_the_second(tmp_path: Path) -> None:
    def num_whole() -> int:
        return sum(map(is_whole, checkpoints_in(tmp_path)))

    for step in range(1, 6):
        folder = tmp_path / f"checkpoint-{step}"
        with in_the_making(folder):
            folder.mkdir()
            (folder / "model.safetensors").write_text("weights")
            assert num_whole() == min(2, step - 1)
        assert num_whole() == min(2, step)


def test_a_full_disk_in_the_middle_of_a_checkpoint_keeps_the_one_before_and_says_how_much_is_missing(
    tmp_path: Path,
) -> None:
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        with in_the_making(folder):
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(bytes(3 * 2**20))
    told = pytest.raises(ResourceError, match=r"ran full: checkpoint-3 needs about 3\.0 MiB, .* MiB missing")
    with told, in_the_making(tmp_path / "checkpoint-3"):
        (tmp_path / "checkpoint-3").mkdir()
        (tmp_path / "checkpoint-3/model.safetensors").write_bytes(bytes(100))
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors says it
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-2", {})


@pytest.mark.parametrize("name", ["save_only_model", "ignore_data_skip", "enable_jit_checkpoint"])
def test_settings_that_make_a_resume_another_run_are_refused(name: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is set by the stage itself"):
        train(toy(trl={name: True}), base, tmp_path)


def test_the_random_numbers_of_dropout_go_on_after_a_resume_off_the_grid_of_generation(
    base: Path, tmp_path: Path
) -> None:
    settings = {**STAGE, "lora": Lora(rank=4, alpha=8, dropout=0.1)}
    whole = train(toy(**settings), base, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(toy(**settings), base, tmp_path / "cut", stop_after=3)
    assert same(whole, train(toy(**settings), base, tmp_path / "cut"))
