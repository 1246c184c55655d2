"""GRPO: it learns from rewards and from nothing else, resumes exactly, and says clearly what cannot be."""

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from pipeline.errors import ConfigError, DataError, Interrupted, ModelError, ResourceError
from pipeline.refs import Ref
from pipeline.stage import ModelSource, Workdir, read_jsonl
from stages.engines.merging import merge_and_save
from stages.engines.models import load_model, load_tokenizer
from stages.engines.samplers import Sampling, TransformersSampler
from stages.grpo import GRPO, closing_means, usable
from stages.training import Lora, Optimiser, Schedule
from tests.toy_model import save_toy_model


class ToyInputs:
    """Stands in for `pipeline.stage.Inputs`: one model folder, some rows."""

    def __init__(self, model: Path, rows: list[dict[str, str]]) -> None:
        self.model, self.problems = model, rows

    def checkpoint(self, field: str) -> ModelSource:
        return ModelSource(str(self.model))

    def rows(self, field: str, limit: int | None = None) -> list[dict[str, str]]:
        return self.problems[:limit]

    def rows_by_source(self, field: str, limit: int | None = None) -> list[tuple[Ref, list[dict[str, str]]]]:
        return [(Ref.parse("path:rows"), self.rows(field, limit))]


class FirstByte(GRPO):
    """The toy task: a response is right when it starts with a lower-case letter."""

    def score(self, problems: Sequence[Any], completions: Sequence[Any], fraction: float) -> list[dict[str, Any]]:
        right = [float(c.text[:1].islower()) for c in completions]
        return [{"reward": r, "reward/accuracy": r} for r in right]


class ShuffledFirstByte(FirstByte):
    """The same rewards, handed to the wrong responses."""

    def score(self, problems: Sequence[Any], completions: Sequence[Any], fraction: float) -> list[dict[str, Any]]:
        rows = super().score(problems, completions, fraction)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(int(fraction * 1000)))
        return [rows[i] for i in order]


def problems(count: int = 12) -> list[dict[str, str]]:
    row = {"answer": "2", "checker": "math", "domain": "arithmetic", "language": "en"}
    return [{"id": f"p{i}", "prompt": f"{i}+{i}", **row, "answer": str(2 * i)} for i in range(count)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("base"))


def toy(kind: type[GRPO] = FirstByte, **settings: Any) -> GRPO:
    defaults: dict[str, Any] = {
        "model": "path:base",
        "problems": ["path:problems"],
        "rewards": [{"kind": "accuracy"}],
        "template": "mini",
        "max_steps": 6,
        "num_problems": 4,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
        "save_steps": 2,
        "device": "cpu",
    }
    return kind(**{**defaults, **settings})


class SignalledWorkdir(Workdir):
    """Sends this process SIGTERM before a step, as a scheduler would in the middle of a run."""

    stop_after = 0

    def log(self, step: int, metrics: Any) -> None:
        super().log(step, metrics)
        if step == self.stop_after - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def train(stage: GRPO, base: Path, folder: Path, stop_after: int = 0) -> dict[str, torch.Tensor]:
    """Runs the stage in `folder` and returns the saved model's weights."""
    work = SignalledWorkdir(folder)
    work.stop_after = stop_after
    stage.run(ToyInputs(base, problems()), work)  # type: ignore[arg-type]
    return load_model(folder, device="cpu").state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def share_right(folder: Path) -> float:
    sampler = TransformersSampler(load_model(folder, device="cpu"), load_tokenizer(folder))
    rows = sampler.generate([f"Q: {i}?\nA:" for i in range(20)], 10, Sampling(max_new_tokens=2, seed=123))
    return sum(c.text[:1].islower() for group in rows for c in group) / 200


def test_true_rewards_are_learned_and_shuffled_ones_are_not(base: Path, tmp_path: Path) -> None:
    settings = {
        "max_steps": 25,
        "num_problems": 8,
        "num_generations": 8,
        "max_completion_length": 2,
        "learning_rate": 1e-2,
    }
    train(toy(FirstByte, **settings), base, tmp_path / "true")
    train(toy(ShuffledFirstByte, **settings), base, tmp_path / "shuffled")
    before = share_right(base)
    assert share_right(tmp_path / "true") > before + 0.5
    assert share_right(tmp_path / "shuffled") < before + 0.2


RESUMED = {
    "all weights": {},
    "lora with dropout": {"lora": Lora(rank=4, alpha=8, dropout=0.1)},
    "kl with lora, refreshed": {"lora": Lora(rank=4, alpha=8), "beta": 0.1, "ref_model_sync_steps": 3},
    "kl with all weights, refreshed": {"beta": 0.1, "ref_model_sync_steps": 3},
    "two updates a batch, cut between them": {"num_iterations": 2, "save_steps": 3},
    "dynamic sampling": {"dynamic_sampling": 2},
    "in the second of three phases": {
        "lengthening": [
            {"from_fraction": 0.1, "length": 2, "generations": 2},
            {"from_fraction": 0.8, "length": 3, "generations": 2},
        ]
    },
    "where a phase begins, with lora and a reference": {
        "lengthening": [{"from_fraction": 0.5, "length": 2, "generations": 2}],
        "lora": Lora(rank=4, alpha=8, dropout=0.1),
        "beta": 0.1,
    },
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED.keys())
def test_a_run_stopped_by_a_signal_and_resumed_equals_the_uninterrupted_run(
    settings: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    stage = toy(**settings)
    whole = train(stage, base, tmp_path / "whole")
    with pytest.raises(Interrupted, match="after step 3"):
        train(stage, base, tmp_path / "cut", stop_after=3)
    resumed = train(stage, base, tmp_path / "cut")
    assert same(whole, resumed)
    assert curves(tmp_path / "whole") == curves(tmp_path / "cut")


def test_a_resume_in_a_later_epoch_follows_the_same_order_of_problems(base: Path, tmp_path: Path) -> None:
    stage = toy(max_steps=8)  # three steps an epoch
    whole = train(stage, base, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(stage, base, tmp_path / "cut", stop_after=5)
    assert same(whole, train(stage, base, tmp_path / "cut"))


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(base: Path, tmp_path: Path) -> None:
    stage = toy()
    whole = train(stage, base, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(stage, base, tmp_path / "cut", stop_after=5)
    checkpoints = tmp_path / "cut/checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["checkpoint-4", "checkpoint-5"]
    torn = checkpoints / "checkpoint-5/model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-2000] + bytes(2000))
    assert same(whole, train(stage, base, tmp_path / "cut"))


def test_a_kill_between_training_and_publishing_trains_nothing_again(base: Path, tmp_path: Path) -> None:
    stage = toy()
    whole = train(stage, base, tmp_path / "run")
    (tmp_path / "run/model.safetensors").unlink()
    assert same(whole, train(stage, base, tmp_path / "run"))
    assert len(read_jsonl(tmp_path / "run/metrics.jsonl")) == stage.max_steps


def test_the_curves_have_the_names_the_report_reads(base: Path, tmp_path: Path) -> None:
    train(toy(beta=0.01), base, tmp_path)
    row = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    names = """step reward reward/accuracy pass_at_1 mean_response_tokens entropy zero_variance_share
    clipped_share kl
    loss grad_norm learning_rate tokens_per_s step_seconds generate_seconds train_seconds"""
    assert set(names.split()) <= set(row)
    assert row["step"] == 6 and 0 < row["entropy"] < 6 and row["kl"] >= 0


def test_groups_without_an_advantage_are_not_trained_and_harm_nothing(base: Path, tmp_path: Path) -> None:
    class AllEqual(FirstByte):
        def score(self, problems: Sequence[Any], completions: Sequence[Any], fraction: float) -> list[dict[str, Any]]:
            return [{"reward": 0.3, "reward/accuracy": 0.3} for _ in completions]

    weights = train(toy(AllEqual), base, tmp_path)
    assert same(weights, load_model(base, device="cpu").state_dict())
    assert [row["trained_share"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0.0] * 6


def test_dynamic_sampling_trains_on_groups_that_have_a_signal(base: Path, tmp_path: Path) -> None:
    without, within = tmp_path / "without", tmp_path / "within"
    settings = {"max_steps": 3, "num_problems": 6, "learning_rate": 1e-6}
    train(toy(**settings), base, without)
    train(toy(**settings, dynamic_sampling=4), base, within)
    before, after = read_jsonl(without / "metrics.jsonl"), read_jsonl(within / "metrics.jsonl")
    assert 0 < before[0]["zero_variance_share"] == after[0]["zero_variance_share"]
    assert sum(row["trained_share"] for row in before) < sum(row["trained_share"] for row in after)
    assert all(0 < row["num_further_problems"] <= 4 * 6 for row in after)
    assert after[0]["reward"] == before[0]["reward"]  # measured on the step's own problems, with and without


def test_dynamic_sampling_gives_up_where_nothing_has_a_signal(base: Path, tmp_path: Path) -> None:
    class AllEqual(FirstByte):
        def score(self, problems: Sequence[Any], completions: Sequence[Any], fraction: float) -> list[dict[str, Any]]:
            return [{"reward": 0.3, "reward/accuracy": 0.3} for _ in completions]

    weights = train(toy(AllEqual, dynamic_sampling=50, max_steps=1), base, tmp_path)
    assert same(weights, load_model(base, device="cpu").state_dict())
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["num_further_problems"] == 12 - 4  # every problem once, no more


def test_each_phase_samples_longer_and_more(base: Path, tmp_path: Path) -> None:
    phases = [{"from_fraction": 0.3, "length": 2, "generations": 2}, {"from_fraction": 0.8, "length": 3}]
    seen: list[tuple[int, int]] = []

    class Counting(FirstByte):
        def score(self, problems: Sequence[Any], completions: Sequence[Any], fraction: float) -> list[dict[str, Any]]:
            seen.append((len(completions), max(len(c.token_ids) for c in completions)))
            return super().score(problems, completions, fraction)

    train(toy(Counting, lengthening=phases), base, tmp_path)
    assert seen == [(16, 6)] * 2 + [(32, 12)] * 3 + [(16, 18)]
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_phase_begins_by_itself_when_responses_are_cut_off(base: Path, tmp_path: Path) -> None:
    phases = [{"from_fraction": 0.95, "clipped_share": 0.5, "length": 2}]
    train(toy(lengthening=phases, max_steps=14, learning_rate=1e-6), base, tmp_path)
    tokens = [row["mean_response_tokens"] for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert max(tokens[:10]) <= 6 < min(tokens[10:])  # ten steps are looked at


def test_the_saved_model_is_the_trained_one_and_its_adapter_lies_beside(base: Path, tmp_path: Path) -> None:
    trained = train(toy(lora=Lora(rank=4, alpha=8)), base, tmp_path)
    assert not same(trained, load_model(base, device="cpu").state_dict())
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()
    assert load_tokenizer(tmp_path).eos_token == load_tokenizer(base).eos_token
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("lora", [Lora(rank=4, alpha=8), None], ids=["adapter", "all weights"])
def test_trained_in_mixed_precision_as_on_a_gpu_it_is_saved_exactly(
    lora: Lora | None, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    train(toy(lora=lora, max_steps=2), base, tmp_path)
    assert abs(json.loads((tmp_path / "merge.json").read_text())["merge_drift"]) < 2e-8


def test_real_rewards_are_scored_with_the_stage_s_own_template(base: Path, tmp_path: Path) -> None:
    train(toy(GRPO, rewards=[{"kind": "accuracy"}, {"kind": "format", "weight": 0.2}]), base, tmp_path)
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert all(row["pass_at_1"] == row["reward/accuracy"] == 0 and row["reward/format"] == 0 for row in rows)


REFUSED = {
    "an unknown TRL setting": ({"trl": {"top_kk": 5}}, ConfigError, "no setting 'top_kk'"),
    "a TRL setting that is ours": ({"trl": {"learning_rate": 1}}, ConfigError, "set by the stage itself"),
    "a TRL setting of the whole batch": ({"trl": {"entropy_coef": 0.1}}, ConfigError, "cannot be cut"),
    "CUDA without CUDA": ({"device": "cuda"}, ResourceError, "no CUDA device"),
    "an optimiser that needs CUDA": ({"optim": "adamw_8bit"}, ResourceError, "needs CUDA"),
    "4-bit weights without an adapter": ({"quantization": "nf4"}, ConfigError, "nothing to train"),
    "a refresh without a reference": ({"ref_model_sync_steps": 5}, ConfigError, "there is none"),
    "a phase beyond the context": ({"lengthening": [{"from_fraction": 0.5, "length": 50}]}, DataError, "of 300"),
    "fewer problems than a step takes": ({"num_problems": 50}, DataError, "12 usable problems"),
    "a prompt beyond the context": ({"max_completion_length": 250}, DataError, "problem 'p10'"),
    "all weights for a server": ({"sampler": "vllm_server"}, ConfigError, "sent the adapter of each step"),
    "vLLM without CUDA": ({"sampler": "vllm"}, ResourceError, "sampler 'vllm'"),
}


def test_optimisers_and_schedules_have_transformers_names() -> None:
    assert set(get_args(Optimiser)) <= {name.value for name in OptimizerNames}
    assert set(get_args(Schedule)) <= {name.value for name in SchedulerType}


UNFIT = {
    "a ratio cut below 1": ({"loss_type": "cispo"}, "cuts the ratio itself"),
    "a bound of nothing": ({"loss_type": "vespo", "delta": 2.0}, "clips none"),
    "a length that weighs": ({"importance_sampling_level": "sequence"}, "would weigh a sequence by its length"),
    "a seed of more than four bytes": ({"seed": 2**32}, "less than 4294967296"),
    "luspo by tokens": ({"loss_type": "luspo"}, "made for importance_sampling_level sequence"),
}


@pytest.mark.parametrize(("settings", "says"), UNFIT.values(), ids=UNFIT.keys())
def test_what_the_libraries_would_not_take_or_not_mind_is_refused_as_a_setting(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        toy(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA says")
@pytest.mark.parametrize(("settings", "error", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_with_a_sentence_before_any_training(
    settings: dict[str, Any], error: type[Exception], says: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        train(toy(**settings), base, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


ABSENT = [(["foo", "bar"], "foo, bar"), ("foo", "foo"), ("(foo", r"\(foo"), ([], ""), (["mlp"], "mlp")]


@pytest.mark.parametrize(("target_modules", "asked"), ABSENT)
def test_an_adapter_on_layers_that_the_model_lacks_is_refused_with_those_that_it_has(
    target_modules: Any, asked: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"lora\.target_modules: .* by the name '{asked}'") as caught:
        train(toy(lora={"target_modules": target_modules}), base, tmp_path)
    assert "are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj; all-linear" in caught.value.hint


def test_code_rewards_without_a_sandbox_are_refused_before_any_training(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_holds() -> None:
        raise ResourceError("programs cannot be run safely on this machine")

    monkeypatch.setattr("stages.rewards.code.the_box", none_holds)
    with pytest.raises(ResourceError, match="cannot be run safely"):
        train(toy(GRPO, rewards=[{"kind": "accuracy"}, {"kind": "code"}]), base, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_misspelt_trl_setting_gets_a_suggestion(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'steps_per_generation'"):
        train(toy(trl={"step_per_generation": 2}), base, tmp_path)


def test_headline_figures_are_those_of_the_last_steps_that_have_them() -> None:
    rows: list[dict[str, Any]] = [{"reward": 0.1, "step_seconds": 9.0}, {"reward": 0.7, "step_seconds": 3.0}]
    rows += [{"step_seconds": 2.0}, {"reward": None, "step_seconds": 1.0}]  # updates on what was sampled before
    assert closing_means(rows) == {"reward": 0.7, "step_seconds": 1.0}


def test_golds_that_cannot_be_checked_are_left_out_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    bad = [{**row, "answer": ""} for row in problems(3)]
    kept, num_bad = usable(problems(5) + bad)
    assert [row["id"] for row in kept] == ["p0", "p1", "p2", "p3", "p4"] and num_bad == 3
    assert [record.getMessage().split()[1] for record in caplog.records] == ["p0", "p1", "p2"]
    with pytest.raises(DataError, match="no gold answer can be used: problem 'p0'"):
        usable(bad)


def damaged(base: Path, folder: Path, what: str) -> Path:
    shutil.copytree(base, folder)
    weights = folder / "model.safetensors"
    if what == "missing":
        weights.unlink()
    elif what == "cut off":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif what == "not safetensors":
        weights.write_bytes(b"PK\x03\x04" + bytes(100))
    elif what == "a header of nonsense":
        header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": ["a", "b"]}}).encode()
        weights.write_bytes(len(header).to_bytes(8, "little") + header)
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "another shape":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-model"}))
    return folder


DAMAGES = ("missing", "cut off", "not safetensors", "a header of nonsense", "no config", "another shape")


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_one_sentence(what: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(damaged(base, tmp_path / "damaged", what), device="cpu")
    assert "\n" not in caught.value.message and str(tmp_path) in caught.value.message


def test_a_merge_that_changes_the_model_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model(base, device="cpu"), load_tokenizer(base)
    write = type(model).save_pretrained

    def lossy(self: Any, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            self.model.layers[0].mlp.down_proj.weight.add_(1.0)
        write(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "save_pretrained", lossy)
    with pytest.raises(ModelError, match="does not compute what was trained"):
        merge_and_save(model, tokenizer, tmp_path)


def curves(folder: Path) -> list[dict[str, Any]]:
    """The curves without what depends on the clock or the process."""
    timed = ("seconds", "tokens_per_s", "memory")
    return [
        {k: v for k, v in row.items() if not any(t in k for t in timed)} for row in read_jsonl(folder / "metrics.jsonl")
    ]
