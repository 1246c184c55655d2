"""The short form of `make torture`, and the proof that it and `benchmarks.gpu_kills` would notice a difference."""

import json
import math
import shutil
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.gpu_kills import compared, distance, folder_of
from tests import torture
from tests.torture import Campaign, different, run, table


@pytest.mark.long
def test_ten_kills_in_the_first_measurement_and_in_r1_zero_change_no_byte(tmp_path, monkeypatch):
    monkeypatch.setenv("R1_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    campaign = Campaign(wanted=10, seed=3, until="r1_zero")
    assert run(campaign, tmp_path / "torture.json"), campaign.differences
    assert len(campaign.kills) == 10
    assert len({kill.how for kill in campaign.kills}) > 2
    assert Campaign.model_validate(json.loads((tmp_path / "torture.json").read_text())) == campaign
    assert "| all |" in table(campaign)


def test_after_a_kill_that_came_too_late_another_moment_is_drawn(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torture, "attempt", lambda *args: asked.append(args[3:]))
    campaign = Campaign(wanted=2, seed=3, until="r1_zero", stage_seconds={"eval_base": 100.0, "r1_zero": 100.0})
    for campaign.walks in range(3):
        for stage in ("eval_base", "r1_zero"):
            torture.attack(campaign, 0, tmp_path, stage, tmp_path / "result.json")
    assert len(asked) == 6 and len(set(map(str, asked[::2]))) == len(set(map(str, asked[1::2]))) == 3


@pytest.fixture
def twins(toy, r1) -> tuple[Path, Path]:
    """The same artifact, twice."""
    assert r1("run", "toy", "--until", "data")[0] == 0
    shutil.copytree(toy / "runs/toy-mini", toy / "runs/twin")
    return toy / "runs/toy-mini/data", toy / "runs/twin/data"


def remade(folder: Path, **files: str) -> None:
    """Seals the artifact again with other files."""
    from pipeline.artifact import read_manifest, seal

    record = read_manifest(folder)
    for name, text in files.items():
        (folder / name.replace("_json", ".json").replace("_txt", ".txt")).write_text(text)
    seal(folder, record)


def test_twins_do_not_differ_but_a_changed_byte_or_another_file_does(twins):
    assert different(*twins) == []
    remade(twins[1], rows_jsonl='{"number": "7"}\n', more_txt="x")
    assert different(*twins) == ["data/more.txt", "data/rows.jsonl"]


def test_what_a_clock_says_is_no_difference_and_anything_else_in_a_curve_is(twins):
    row = {"step": 1, "loss": 0.5, "step_seconds": 1.0, "tokens_per_s": 9.0, "peak_memory_gib": 1.0}
    remade(twins[0], metrics_jsonl=json.dumps(row))
    remade(twins[1], metrics_jsonl=json.dumps(row | {"step_seconds": 2.0, "tokens_per_s": 1.0, "peak_memory_gib": 7.0}))
    assert different(*twins) == []
    remade(twins[1], metrics_jsonl=json.dumps(row | {"loss": 0.25}))
    assert different(*twins) == ["data/metrics.jsonl"]


def test_an_adapter_may_name_another_place_but_not_another_model(twins):
    for name, (place, model) in {"twin": ("a", "r1_zero"), "same": ("b", "r1_zero"), "other": ("b", "base")}.items():
        folder = twins[0].parents[1] / place / name
        shutil.copytree(twins[0], folder / "data")
        (folder / "data/adapter").mkdir()
        settings = json.dumps({"base_model_name_or_path": f"{folder.parent}/torture/{model}/model"})
        remade(folder / "data", **{"adapter/adapter_config_json": settings})
    runs = twins[0].parents[1]
    assert different(runs / "a/twin/data", runs / "b/same/data") == []
    assert different(runs / "a/twin/data", runs / "b/other/data") == ["data/adapter/adapter_config.json"]


def test_every_stage_gets_its_share_of_the_kills(tmp_path, monkeypatch):
    """Also with fewer kills a job than stages, and where a stage is too fast to be hit."""
    stages = ["one", "two", "three", "four"]
    monkeypatch.setenv("R1_RUNS", str(tmp_path))
    monkeypatch.setattr(torture, "stages_of", lambda campaign: stages)
    monkeypatch.setattr(torture, "different", lambda *folders: [])

    def attempt(campaign, place, until, more=None, after_s=None, victim="all"):
        if more is None or (until == "two" and place.name.endswith("job-1")):
            return (place / torture.RUN / until).mkdir(parents=True, exist_ok=True)
        return more["R1_KILL_AT"].partition("/")[2] if more else f"random, {victim}"

    monkeypatch.setattr(torture, "attempt", attempt)
    campaign = Campaign(wanted=60, seed=1, until="four", jobs=10)
    assert run(campaign, tmp_path / "torture.json")
    counts = Counter(kill.stage for kill in campaign.kills)
    assert len(campaign.kills) == 60 and campaign.walks >= 10
    assert set(counts) == set(stages) and max(counts.values()) < 22
    ways = Counter((kill.stage, kill.how.startswith("random")) for kill in campaign.kills)
    assert min(ways.values()) >= 4 and len(ways) == 8


def test_after_the_given_minutes_there_are_no_more_kills(tmp_path, monkeypatch):
    monkeypatch.setenv("R1_RUNS", str(tmp_path))
    monkeypatch.setattr(torture, "stages_of", lambda campaign: [])
    campaign = Campaign(wanted=60, seed=1, until="four", jobs=2)
    assert run(campaign, tmp_path / "torture.json", minutes=0)
    assert campaign.kills == []


def a_run(folder: Path, losses: list[float], adapter: list[float]) -> Path:
    """What `benchmarks.gpu_kills` reads of a trained stage."""
    (folder / "adapter").mkdir(parents=True)
    rows = [json.dumps({"step": step + 1, "loss": loss}) for step, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("\n".join(rows))
    weights = {"layer.lora_A.weight": torch.rand(3), "layer.lora_B.weight": torch.tensor(adapter)}
    save_file(weights, folder / "adapter/adapter_model.safetensors")
    return folder


def test_the_distance_of_two_runs_is_a_share_of_their_size_and_a_seam_is_infinitely_far(tmp_path):
    one = a_run(tmp_path / "one", [1.0, 2.0, 3.0], [3.0, 4.0])
    two = a_run(tmp_path / "two", [1.0, 2.0, 3.6], [3.0, 4.5])
    seam = a_run(tmp_path / "seam", [1.0, 2.0, 2.0, 3.0], [3.0, 4.0])
    assert [distance(one, one, what) for what in ("loss", "adapter")] == [0, 0]
    assert distance(one, two, "loss") == pytest.approx(0.1)
    assert distance(one, two, "adapter") == pytest.approx(0.1)
    assert distance(one, seam, "loss") == math.inf


@pytest.mark.parametrize(
    "gpu, noise, tolerance", [(None, 0.0, 0.0), ("H100", 0.0, 0.01), ("H100", 0.2, 0.3)], ids=["cpu", "still", "noisy"]
)
def test_a_killed_run_may_be_as_far_as_undisturbed_ones_are_and_on_a_cpu_not_at_all(tmp_path, gpu, noise, tolerance):
    asked = Namespace(undisturbed=2)
    for name, loss in {"undisturbed-1": 1.0, "undisturbed-2": 1 + noise, "killed": 1.0, "another-seed": 2.0}.items():
        a_run(folder_of(tmp_path, "stage", name), [loss], [loss])
    manifest = {"git": {}, "packages": {}, "hardware": {"gpu": gpu}}
    (folder_of(tmp_path, "stage", "undisturbed-1") / "manifest.json").write_text(json.dumps(manifest))
    found = compared(asked, tmp_path, "stage")["distances"]
    assert found["loss"] == pytest.approx(
        {"undisturbed": noise, "killed": noise / (1 + noise), "another-seed": 1.0, "tolerance": tolerance}
    )
    assert found.keys() == {"loss", "adapter"}
