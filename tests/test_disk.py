"""The disk: room is asked for before a stage starts; full, read-only or gone, it costs a sentence and nothing else."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import disk, runner
from pipeline.artifact import is_whole, load
from pipeline.errors import ResourceError
from stages.sft import SFT
from stages.training import Lora
from tests.conftest import TOY_CLI
from tests.test_grpo import ToyInputs, problems
from tests.toy_model import save_toy_model

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 4 MiB; the test is skipped, loudly, where none may be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk to fill: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path, leave: int) -> Path:
    """Fills the disk of `folder` but for so many bytes."""
    filler = folder / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(folder).free - leave))
    return filler


def test_a_stage_that_would_not_fit_does_not_start_and_the_missing_bytes_are_named(toy, r1, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_ROOM", 2**60)
    code, output = r1("run", "toy")
    assert code == 2
    assert "stage data needs about 1099511627776 MiB on the disk of" in output
    assert "MiB missing)" in output and "R1_RUNS=FOLDER" in output
    assert not (toy / "runs/toy-mini/data.log").exists()


def test_the_forecast_of_training_counts_the_checkpoints_that_are_kept(tmp_path):
    base = save_toy_model(tmp_path / "base")
    size = (base / "model.safetensors").stat().st_size
    inputs = ToyInputs(base, problems())
    whole = SFT(model="path:base", demos=["path:demos"]).room_bytes(inputs)  # type: ignore[arg-type]
    adapter = SFT(model="path:base", demos=["path:demos"], lora=Lora(rank=4, alpha=8)).room_bytes(inputs)  # type: ignore[arg-type]
    assert 4 * 3 * size <= whole <= 4 * 3 * size + 2 * size  # fp32 weights and two moments, four times, and the model
    assert size < adapter < whole / 2


def test_a_full_disk_is_a_sentence_with_the_missing_bytes_and_work_goes_on_when_there_is_room(
    toy, r1, small_disk, monkeypatch
):
    monkeypatch.setenv("R1_RUNS", str(small_disk))
    monkeypatch.setattr(runner, "LEAST_ROOM", 0)
    assert r1("run", "toy", "--until", "data")[0] == 0
    filler = fill(small_disk, leave=0)
    code, output = r1("run", "toy")
    assert code == 2
    assert "ran full" in output and "MiB missing" in output
    assert "Traceback" not in output
    assert is_whole(small_disk / "toy-mini/data")
    filler.unlink()
    assert r1("run", "toy")[0] == 0


@pytest.mark.parametrize("leave", range(0, 6 * 4096, 4096), ids=lambda leave: f"{leave // 1024} kB left")
def test_wherever_in_a_stage_the_disk_runs_full_nothing_torn_is_published(toy, r1, small_disk, monkeypatch, leave):
    monkeypatch.setenv("R1_RUNS", str(small_disk))
    monkeypatch.setattr(runner, "LEAST_ROOM", 0)
    rows = ["--until", "data", "--args", "stages.data.n=800"]
    filler = fill(small_disk, leave)
    code, output = r1("run", "toy", *rows)
    assert code == 2 and "ran full" in output
    assert not (small_disk / "toy-mini/data").exists()
    filler.unlink()
    assert r1("run", "toy", *rows)[0] == 0
    assert load(small_disk / "toy-mini/data", deep=True).manifest["metrics"] == {"rows": 800}


def test_what_libraries_say_instead_of_enospc_is_understood():
    assert disk.is_full(OSError(errno.ENOSPC, "No space left on device"))
    assert disk.is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    wrapped = RuntimeError("cannot save")
    wrapped.__cause__ = RuntimeError(
        "[enforce fail at inline_container.cc:672] PytorchStreamWriter failed writing file"
    )
    assert disk.is_full(wrapped)
    assert not disk.is_full(OSError(errno.EACCES, "Permission denied"))
    assert disk.failure(ValueError("a bug"), Path(), 0, "x") is None
    assert "disk" not in str(disk.failure(ConnectionError("the hub hung up"), Path(), 0, "x"))


def test_torch_and_safetensors_on_a_really_full_disk_are_understood(small_disk):
    import torch
    from safetensors.torch import save_file

    weights = {"a": torch.zeros(2 * MIB)}
    for write in (lambda: save_file(weights, small_disk / "a"), lambda: torch.save(weights, small_disk / "b")):
        with pytest.raises(Exception) as caught:
            write()
        assert disk.is_full(caught.value)
        (small_disk / "a").unlink(missing_ok=True)


def test_a_read_only_folder_is_a_sentence_before_anything_starts(toy, r1, small_disk, monkeypatch):
    monkeypatch.setenv("R1_RUNS", str(small_disk))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    code, output = r1("run", "toy")
    assert code == 2
    assert "cannot be written: Read-only file system\nhint: " in output


def test_a_folder_that_becomes_read_only_in_the_middle_is_a_sentence(toy, r1, small_disk, monkeypatch):
    monkeypatch.setenv("R1_RUNS", str(small_disk))
    monkeypatch.setattr(runner, "LEAST_ROOM", 0)
    assert r1("run", "toy", "--until", "data")[0] == 0
    (small_disk / "toy-mini/model").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    code, output = r1("run", "toy", "--rebuild", "data")
    assert code == 2
    assert "Read-only file system" in output and "Traceback" not in output


def test_a_run_whose_folder_vanishes_says_so(toy):
    command = [sys.executable, TOY_CLI, "run", "toy", "--args", "stages.data.n=40", "stages.data.pause_s=0.1"]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    progress = toy / "runs/toy-mini/data.partial/progress.json"
    while not progress.exists() and run.poll() is None:
        time.sleep(0.01)
    shutil.rmtree(toy / "runs/toy-mini", ignore_errors=True)
    shutil.rmtree(toy / "runs/toy-mini", ignore_errors=True)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 2
    assert "error: " in said and "Traceback" not in said


def test_a_bug_about_another_file_keeps_its_traceback(toy, r1, monkeypatch):
    from pipeline import cli

    def bug(arguments: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/elsewhere")

    monkeypatch.setattr(cli, "_plan", bug)
    with pytest.raises(FileNotFoundError):
        r1("plan", "toy")


def test_require_room_is_silent_where_there_is_room(tmp_path):
    disk.require_room(tmp_path, 1, "a stage")
    with pytest.raises(ResourceError):
        disk.require_room(tmp_path, 2**60, "a stage")
