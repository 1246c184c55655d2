"""vLLM beside training: what it samples comes from the model in training, and its numbers are used where they agree.

The tests marked `gpu` need CUDA, vLLM and `models/smollm2-135m` (`make smollm2`), and load the real engine:

    python -m pytest -m gpu tests/test_vllm.py -s
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipeline.artifact import read_json
from pipeline.errors import ModelError
from pipeline.places import ROOT
from pipeline.stage import ModelSource, read_jsonl
from stages.engines import grpo_run
from stages.engines.grpo_trainer import TokenBudgetGRPOTrainer
from stages.engines.models import load_tokenizer
from stages.engines.samplers import Sampling, TransformersSampler
from stages.engines.vllm_sampler import ServerSampler
from tests.test_grpo import toy, train
from tests.torture import kill
from tests.toy_model import save_toy_model


class Elsewhere(TransformersSampler):
    """An engine with weights of its own whose log-probabilities are off by `noise`."""

    trained_elsewhere, noise = True, 0.0

    def generate(self, prompts: Sequence[str], n: int, sampling: Sampling) -> Any:
        groups = super().generate(prompts, n, sampling)
        return [[replace(c, logprobs=[p - self.noise for p in c.logprobs]) for c in group] for group in groups]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("base"))


def trained_with(noise: float, base: Path, folder: Path, patch: pytest.MonkeyPatch) -> tuple[dict[str, Any], int]:
    """Weights of three batches with two updates each, and how many passes there were for old log-probabilities."""
    passes: list[int] = []
    own = TokenBudgetGRPOTrainer._logps_in_parts
    patch.setattr(Elsewhere, "noise", noise)
    patch.setattr(
        grpo_run, "open_sampler", lambda stage, source, tokenizer, device, model=None: Elsewhere(model, tokenizer)
    )
    patch.setattr(TokenBudgetGRPOTrainer, "_logps_in_parts", lambda self, *words: passes.append(1) or own(self, *words))
    return train(toy(num_iterations=2, optim="sgd", learning_rate=0.1), base, folder), len(passes)


def test_rollout_log_probs_stand_for_the_old_ones_once_they_are_seen_to_agree(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reused, num_passes = trained_with(0.0, base, tmp_path / "reused", monkeypatch)
    assert num_passes == 1  # of three batches the first, when nothing is known yet
    monkeypatch.setattr("stages.engines.grpo_trainer.AGREES", -1.0)
    computed, num_passes = trained_with(0.0, base, tmp_path / "computed", monkeypatch)
    assert num_passes == 3
    assert all(torch.allclose(reused[name], computed[name], atol=1e-5) for name in reused)


def test_they_do_not_where_the_engines_differ(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, num_passes = trained_with(0.1, base, tmp_path, monkeypatch)
    assert num_passes == 3
    gaps = [row["engine_gap"] for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert gaps[::2] == pytest.approx([0.1] * 3, abs=1e-3)


def test_an_engine_that_samples_from_another_model_ends_the_stage(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"3\.00 nats a token away .* does not sample from that model"):
        trained_with(3.0, base, tmp_path, monkeypatch)


class ToyServer(ServerSampler):
    """A server that answers as `vllm serve` does, and refuses what it refuses."""

    def _get(self, path: str) -> dict[str, Any]:
        return {"data": [{"id": "base"}]}

    def _post(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        assert payload["temperature"] > 0 or payload["n"] == 1  # "n must be 1 when using greedy sampling"
        one = {"token_ids": [52], "finish_reason": "stop", "logprobs": {"token_logprobs": [-0.5]}}
        return {"choices": [one] * payload["n"] * len(payload["prompt"])}


@pytest.mark.parametrize("temperature", [0.0, 1e-4, 0.7])
def test_vllm_draws_the_likeliest_response_once_and_it_stands_for_all(base: Path, temperature: float) -> None:
    sampler = ToyServer("http://toy", load_tokenizer(ModelSource(str(base))))
    groups = sampler.generate(["1+1", "2+2"], 4, Sampling(temperature))
    assert [len(group) for group in groups] == [4, 4]
    sampler.close()


@pytest.mark.parametrize(
    ("sampler", "has_vllm", "grows"),
    [("auto", True, False), ("vllm", True, False), ("auto", False, True), ("transformers", True, True)],
)
def test_the_allocators_blocks_grow_only_without_vllm_in_the_process(
    sampler: str, has_vllm: bool, grows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if has_vllm else None)
    assert bool(toy(sampler=sampler).variables()) == grows


# --- on a GPU -------------------------------------------------------------------------------------


def measured(*words: str) -> dict[str, Any]:
    """What `tests/colocated.py` finds; in a process of its own, for vLLM's sleep allows one engine in each."""
    command = [sys.executable, "-m", "tests.colocated", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    print(" ".join(words), found)
    return dict(found)


# Nats a token. SmolLM2 with such an adapter, computed twice in bf16 on a CPU, with the adapter beside the weights and
# added to them, is 0.042 to 0.046 from itself and 0.032 to 0.038 from fp32; vLLM on an H200 was 0.037 to 0.056 away.
BF16_APART = 0.08


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["nf4", "bf16"])
def test_the_engine_follows_the_adapter_and_says_the_same_after_a_sleep(way: str) -> None:
    found = measured(way)
    for gap, with_another_adapter in zip(found["gaps"], found["gaps_with_another_adapter"], strict=True):
        assert gap < BF16_APART and with_another_adapter > 3 * gap
    assert found["same_text_after_sleep"]
    assert found["free_asleep_gib"] - found["free_awake_gib"] > 0.1 * found["total_gib"]


@pytest.mark.gpu
def test_nf4_training_with_vllm_runs_and_the_engines_agree() -> None:
    gaps = measured("train")["gaps"]
    assert len(gaps) == 6 and max(gaps[::2]) < BF16_APART


FEW_STEPS = [
    *("stages.r1_zero.rewards=[{kind: soft_overlong_punishment, soft_punish_cache: 0.99}]", "grpo.quantization=nf4"),
    *("grpo.max_steps=5", "grpo.save_steps=1", "grpo.num_problems=8", "grpo.num_generations=8"),
    *("grpo.max_completion_length=64", "grpo.vllm.gpu_memory_utilization=0.2", "grpo.vllm.max_model_len=512"),
    *("grpo.vllm.enforce_eager=true", "grpo.vllm.attention_backend=FLASH_ATTN"),
]


def abandoned_folders() -> list[Path]:
    """Folders of adapters that no living process holds; other runs on the machine may hold theirs."""
    return [folder for folder in Path("/dev/shm").glob("r1-adapters-*") if not is_held(folder)]


def is_held(folder: Path) -> bool:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@pytest.mark.gpu
@pytest.mark.parametrize("victim", ["stage", "runner", "all"])
def test_nothing_of_vllm_outlives_a_kill_and_the_same_command_goes_on(
    victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1_RUNS", str(tmp_path))
    where = [
        "--scale",
        "smollm2-135m-countdown",
        "--run",
        "x",
        "--engine",
        "plain",
        "--from",
        "r1_zero",
        "--until",
        "r1_zero",
    ]
    command = [sys.executable, "-m", "pipeline", "run", "r1-zero", *where, "--args", *FEW_STEPS]
    free, _ = torch.cuda.mem_get_info()
    process = subprocess.Popen(command, cwd=ROOT)
    progress = tmp_path / "x/r1_zero.partial/progress.json"
    while process.poll() is None and not (progress.exists() and read_json(progress)["step"] >= 2):
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children and free - torch.cuda.mem_get_info()[0] > 2**30  # the engine is there
    assert kill(process.pid, victim) == victim
    _, alive = psutil.wait_procs(children, timeout=90)  # without its runner a stage saves and leaves
    assert not alive and process.wait(90)
    assert free - torch.cuda.mem_get_info()[0] < 2**28
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    assert [row["step"] for row in read_jsonl(tmp_path / "x/r1_zero/metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert not abandoned_folders()
