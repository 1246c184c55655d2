"""Fixtures: a project of toy stages in a temporary folder, and the real data where it lies."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline import runner, written
from pipeline.sources import data_folder
from stages import STAGES
from tests.toy_stages import TOYS

# A shared machine can be slow at any moment: how long one case takes says nothing.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TOY_CLI = str(Path(__file__).parent / "toy_stages.py")
RECIPE = """
description: a toy
stages:
  data: {kind: count}
  model: {kind: sum, data: stage:data}
  eval_model: {kind: look, model: stage:model}
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with configs/ of a toy recipe; runs go to runs/ beside it."""
    for folder in ("configs/recipes", "configs/scales", "runs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "configs/base.yaml").write_text("")
    (tmp_path / "configs/recipes/toy.yaml").write_text(RECIPE)
    (tmp_path / "configs/scales/mini.yaml").write_text("description: small\n")
    for kind, stage in TOYS.items():
        monkeypatch.setitem(STAGES, kind, stage)
    monkeypatch.setattr(written, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(runner, "WORKER", [sys.executable, TOY_CLI, "_stage"])
    monkeypatch.setattr(runner, "LAUNCHER", [sys.executable, TOY_CLI, "_launch"])
    monkeypatch.setenv("R1_TOY_CONFIGS", str(tmp_path / "configs"))
    monkeypatch.setenv("R1_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ENGINE", "plain")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    return tmp_path


@pytest.fixture
def r1(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Calls the command line in this process: `code, output = r1("plan", "toy")`."""
    from pipeline.cli import main

    def call(*words: str) -> tuple[int, str]:
        code = main(list(words))
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.fixture
def real_data() -> Path:
    """The folder of real data (R1_DATA); the test is skipped, loudly, without it."""
    folder = data_folder()
    if folder is None or not folder.is_dir():
        pytest.skip("no real data; set R1_DATA to a folder with gsm8k/train.jsonl and the like")
    return folder
