"""SFT: responses are learned and prompts are not, micro-batches and packing change nothing, a resume is exact."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.errors import ConfigError, DataError, Interrupted, ResourceError
from pipeline.refs import Ref
from pipeline.stage import read_jsonl
from stages.engines.core import Core
from stages.engines.models import load_model, load_tokenizer
from stages.engines.samplers import Sampling, TransformersSampler
from stages.sft import SFT
from stages.training import Lora
from tests.test_grpo import SignalledWorkdir, curves, same
from tests.test_grpo import ToyInputs as OneSource
from tests.toy_model import byte_tokenizer, save_toy_model


class ToyInputs(OneSource):
    """One model folder and demos of one or several references."""

    def __init__(self, model: Path, *sources: list[dict[str, str]]) -> None:
        super().__init__(model, sources[0])
        self.sources = sources

    def rows_by_source(self, field: str, limit: int | None = None) -> list[tuple[Ref, list[dict[str, str]]]]:
        return [(Ref("path", f"demos{i}"), rows) for i, rows in enumerate(self.sources)]


def demos(count: int = 10) -> list[dict[str, str]]:
    row = {"response": " <think> ok </think><answer> ok </answer>", "domain": "general", "language": "en"}
    return [{"id": f"d{i}", "prompt": "say ok" + "!" * i, **row} for i in range(count)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("base"))


def stage(**settings: Any) -> SFT:
    defaults = {"model": "path:base", "demos": ["path:demos"], "template": "mini", "device": "cpu"}
    return SFT(
        **{
            **defaults,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "save_steps": 2,
            "num_train_epochs": 2,
            "eval_share": 0.2,
            "eval_steps": 2,
            **settings,
        }
    )


def train(kind: SFT, base: Path, folder: Path, stop_after: int = 0, rows: Any = None) -> dict[str, torch.Tensor]:
    work = SignalledWorkdir(folder)
    work.stop_after = stop_after
    kind.run(ToyInputs(base, rows or demos()), work)  # type: ignore[arg-type]
    return load_model(folder, device="cpu").state_dict()


def test_the_response_is_learned_with_its_end(base: Path, tmp_path: Path) -> None:
    train(stage(num_train_epochs=25, learning_rate=1e-2), base, tmp_path)
    sampler = TransformersSampler(load_model(tmp_path, device="cpu"), load_tokenizer(tmp_path))
    [[c]] = sampler.generate(["Q: say ok!!\nA:"], 1, Sampling(temperature=0, max_new_tokens=60))
    assert c.text == demos()[0]["response"] and not c.truncated


@pytest.mark.parametrize("settings", [{}, {"lora": Lora(rank=4, alpha=8, dropout=0.1)}], ids=["all weights", "lora"])
def test_a_stopped_and_resumed_run_equals_the_uninterrupted_one(
    settings: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    whole = train(stage(**settings), base, tmp_path / "whole")
    with pytest.raises(Interrupted, match="after step 3"):
        train(stage(**settings), base, tmp_path / "cut", stop_after=3)
    assert same(whole, train(stage(**settings), base, tmp_path / "cut"))
    assert curves(tmp_path / "whole") == curves(tmp_path / "cut")
    texts = [read_jsonl(tmp_path / name / "samples.jsonl") for name in ("whole", "cut")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "other", [{"token_budget": 1}, {"packing": False}, {"packing": False, "token_budget": 1}], ids=str
)
def test_neither_packing_nor_the_token_budget_changes_the_result(
    other: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    settings = {"num_train_epochs": 1, "optim": "sgd"}
    whole = train(stage(token_budget=10**6, **settings), base, tmp_path / "whole")
    tight = train(stage(**settings, **other), base, tmp_path / "tight")
    assert all(torch.allclose(whole[name], tight[name], atol=1e-6) for name in whole)
    assert not same(whole, load_model(base, device="cpu").state_dict())
    losses = [
        [row["eval_loss"] for row in curves(tmp_path / name) if "eval_loss" in row] for name in ("whole", "tight")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_core_learns_what_trls_own_pass_learns(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = stage(lora=Lora(rank=4, alpha=8), learning_rate=1e-2)
    expected = train(kind, base, tmp_path / "plain")
    monkeypatch.setattr(
        "stages.engines.sft_trainer.core_of", lambda model, _, optim, memory: Core(model, optim, memory)
    )
    found = train(kind, base, tmp_path / "core")
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, atol=1e-4), name
    rows = [read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("plain", "core")]
    for plain, ours in zip(*rows, strict=True):
        for name in ("loss", "entropy", "mean_token_accuracy", "grad_norm"):
            assert ours[name] == pytest.approx(plain[name], abs=1e-4), name


def test_the_rate_falls_to_a_tenth_of_its_value(base: Path, tmp_path: Path) -> None:
    train(stage(), base, tmp_path)
    rates = [row["learning_rate"] for row in curves(tmp_path)]
    assert len(rates) == 4 and rates[0] == 3e-3 and 3e-4 <= rates[-1] < 9e-4


def test_demos_that_are_too_long_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    long = {**demos(1)[0], "id": "long", "prompt": "x" * 300}
    result = stage().run(ToyInputs(base, [*demos(), long]), SignalledWorkdir(tmp_path / "some"))  # type: ignore[arg-type]
    assert result["num_too_long"] == 1
    with pytest.raises(DataError, match="every demo of path:demos0 is longer than 256 tokens; the shortest, 'long'"):
        train(stage(), base, tmp_path / "none", rows=[long])


def test_what_cannot_be_is_refused_with_a_sentence(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SFTConfig has no setting 'neftune'"):
        train(stage(trl={"neftune": 1}), base, tmp_path)
    with pytest.raises(ConfigError, match="nothing to train"):
        train(stage(quantization="nf4"), base, tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="needs CUDA"):
            train(stage(optim="paged_adamw_8bit"), base, tmp_path)


def test_the_held_out_loss_is_measured_on_prompts_that_are_not_learned(base: Path, tmp_path: Path) -> None:
    result = stage().run(ToyInputs(base, demos() + demos()), SignalledWorkdir(tmp_path))  # type: ignore[arg-type]
    assert (result["num_demos"], result["num_held_out"]) == (20, 4)  # both demos of two of the ten prompts
    points = [(row["step"], row["eval_loss"]) for row in curves(tmp_path) if "eval_loss" in row]
    assert [step for step, _ in points] == [2, 4, 6, 8]
    assert points[-1][1] == result["eval_loss"] < points[0][1]
    rows = [demo for demo in demos() if demo["id"] in {row["id"] for row in read_jsonl(tmp_path / "samples.jsonl")}]
    assert abs(alone(load_model(tmp_path, device="cpu"), rows) - result["eval_loss"]) < 1e-5


def alone(model: Any, rows: list[dict[str, str]]) -> float:
    """Mean loss of a response's token, each demo read by itself."""
    tokenizer = byte_tokenizer()
    losses = []
    for row in rows:
        prompt = tokenizer(f"Q: {row['prompt']}\nA:")["input_ids"]
        ids = torch.tensor([*prompt, *tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id])
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0].log_softmax(-1)
        losses += [-logprobs[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))]
    return sum(losses) / len(losses)


def test_a_few_texts_are_sampled_while_training(base: Path, tmp_path: Path) -> None:
    train(stage(num_samples_shown=2), base, tmp_path)
    rows = read_jsonl(tmp_path / "samples.jsonl")
    assert [row["step"] for row in rows] == [2, 2, 4, 4]
    assert set(rows[0]) == {"step", "id", "prompt", "demo", "completion", "truncated"}


def test_a_mix_has_its_shares_and_says_what_it_took(base: Path, tmp_path: Path) -> None:
    others = [{**demo, "id": f"o{i}", "prompt": f"other {i}", "domain": "other"} for i, demo in enumerate(demos(8))]
    mixed = stage(demos=["path:a", "path:b"], shares=(0.75, 0.25), caps=(9, None), num_train_epochs=1)
    mixed.run(ToyInputs(base, demos(20), others), SignalledWorkdir(tmp_path))  # type: ignore[arg-type]
    record = json.loads((tmp_path / "mix.json").read_text())
    assert record["num_demos"] == 12 and record["num_held_out"] == 2
    first, second = record["sources"]
    assert (first["ref"], first["num_rows"], first["num_taken"], first["share"]) == ("path:demos0", 9, 9, 0.75)
    assert (second["num_taken"], second["domains"]) == (3, {"other": 3})


def test_a_source_of_which_the_mix_takes_nothing_is_an_error(base: Path, tmp_path: Path) -> None:
    mixed = stage(demos=["path:a", "path:b"], shares=(0.9, 0.1), num_demos=2)
    with pytest.raises(DataError, match="takes no demo from path:demos1"):
        mixed.run(ToyInputs(base, demos(), demos()), SignalledWorkdir(tmp_path))  # type: ignore[arg-type]


def test_demos_that_the_models_tokenizer_cannot_write_are_refused(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "student")
    tokenizer = json.loads((tmp_path / "student/tokenizer.json").read_text())
    del tokenizer["model"]["vocab"]["<"]
    (tmp_path / "student/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(DataError, match=r"demo 'd\d' of path:demos0: the model's tokenizer cannot write '<think>ok"):
        train(stage(), tmp_path / "student", tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"shares": (0.5, 0.5)}, "shares has 2 numbers for 1 references"),
        ({"shares": (0.5,)}, "sum to 1, not 0.5"),
        ({"caps": (0,)}, "caps must be at least 1"),
        ({"demos": []}, "at least 1 item"),
    ],
)
def test_a_mix_that_cannot_be_meant_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        stage(**settings)


def test_a_limit_that_nothing_would_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_gb holds where an adapter is trained"):
        stage(memory_gb=5.0)
    assert stage(memory_gb=5.0, lora={"rank": 4}).memory_gb == 5.0
