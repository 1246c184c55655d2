"""SFT: responses are learned and prompts are not, micro-batches change nothing, a resume is exact."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError, DataError, Interrupted, ResourceError
from stages.engines.models import load_model, load_tokenizer
from stages.engines.samplers import Sampling, TransformersSampler
from stages.sft import SFT
from stages.training import Lora
from tests.test_grpo import SignalledWorkdir, ToyInputs, curves, same
from tests.toy_model import save_toy_model


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
    with pytest.raises(Interrupted, match="after step 4"):
        train(stage(**settings), base, tmp_path / "cut", stop_after=4)
    assert same(whole, train(stage(**settings), base, tmp_path / "cut"))
    assert curves(tmp_path / "whole") == curves(tmp_path / "cut")


def test_the_token_budget_does_not_change_the_result(base: Path, tmp_path: Path) -> None:
    settings = {"num_train_epochs": 1, "optim": "sgd"}
    whole = train(stage(token_budget=10**6, **settings), base, tmp_path / "whole")
    tight = train(stage(token_budget=1, **settings), base, tmp_path / "tight")
    assert all(torch.allclose(whole[name], tight[name], atol=1e-6) for name in whole)
    assert not same(whole, load_model(base, device="cpu").state_dict())


def test_the_rate_falls_to_a_tenth_of_its_value(base: Path, tmp_path: Path) -> None:
    train(stage(), base, tmp_path)
    rates = [row["learning_rate"] for row in curves(tmp_path)]
    assert len(rates) == 6 and rates[0] == 3e-3 and 3e-4 <= rates[-1] < 6e-4


def test_demos_that_are_too_long_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    long = {**demos(1)[0], "id": "long", "prompt": "x" * 300}
    result = stage().run(ToyInputs(base, [*demos(), long]), SignalledWorkdir(tmp_path / "some"))  # type: ignore[arg-type]
    assert result["num_too_long"] == 1
    with pytest.raises(DataError, match="every demo is longer than 256 tokens; the shortest, 'long'"):
        train(stage(), base, tmp_path / "none", rows=[long])


def test_what_cannot_be_is_refused_with_a_sentence(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SFTConfig has no setting 'neftune'"):
        train(stage(trl={"neftune": 1}), base, tmp_path)
    with pytest.raises(ConfigError, match="nothing to train"):
        train(stage(quantization="nf4"), base, tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError, match="needs CUDA"):
            train(stage(optim="paged_adamw_8bit"), base, tmp_path)
