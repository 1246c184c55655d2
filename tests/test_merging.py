"""Saving what was trained: what rounding does is let through, what a fault does is not, small adapters included."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel

from pipeline.errors import ModelError
from stages.engines.merging import compare, merge_and_save
from stages.engines.models import attach_lora, load_classifier, load_model, load_tokenizer
from tests.toy_model import save_toy_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy_model(tmp_path_factory.mktemp("base"))


def adapted(base: Path, size: float, dtype: torch.dtype = torch.float32, load: Any = load_model, **options: Any) -> Any:
    """The toy model with an adapter whose second factor is random, of the given size."""
    torch.manual_seed(1)
    model = attach_lora(load(base, dtype=dtype, device="cpu", **options), rank=8, alpha=16)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, size)
    return model


def saved(model: Any, base: Path, folder: Path) -> dict[str, float]:
    merge_and_save(model, load_tokenizer(base), folder)
    return dict(json.loads((folder / "merge.json").read_text()))


def test_in_fp32_nothing_is_lost(base: Path, tmp_path: Path) -> None:
    found = saved(adapted(base, 0.1), base, tmp_path)
    assert found["merge_drift"] == pytest.approx(0, abs=1e-6) and found["merge_kept"] == pytest.approx(1, abs=1e-3)
    assert found["merge_effect"] > 1e-4
    adapter = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert adapter == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "all weights"])
@pytest.mark.parametrize("load", [load_model, load_classifier])
def test_a_model_is_judged_in_fp32_though_its_trainer_computes_in_bf16(
    load: Any, lora: bool, base: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"new_head": True} if load is load_classifier else {}
    model = adapted(base, 0.03, load=load, **options) if lora else load(base, device="cpu", **options)
    for weight in model.parameters():
        weight.data.mul_(4)  # so that bf16 tells
    AcceleratorState._reset_state()  # there is one for all of a process, and trainers make it anew
    trained = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    AcceleratorState._reset_state()
    assert saved(trained, base, tmp_path)["merge_drift"] == pytest.approx(0, abs=1e-5)


def test_all_weights_are_saved_as_they_are(base: Path, tmp_path: Path) -> None:
    assert saved(load_model(base, device="cpu"), base, tmp_path) == {"merge_drift": 0.0}


def test_rounding_to_bf16_is_measured_and_let_through(base: Path, tmp_path: Path) -> None:
    found = saved(adapted(base, 0.1, torch.bfloat16), base, tmp_path)
    assert 0 < found["merge_drift"] < 1e-3 and 0.9 < found["merge_kept"] < 1.1
    assert load_model(tmp_path, dtype=torch.bfloat16, device="cpu").dtype is torch.bfloat16


@pytest.mark.parametrize(("step", "size"), [(1, 1e-6), (1, 1e-4), (1024, 0.1)])
def test_what_rounding_takes_of_an_adapter_is_told_and_refuses_nothing(
    step: int, size: float, base: Path, tmp_path: Path
) -> None:
    coarse = load_model(base, device="cpu")
    for name, weight in coarse.named_parameters():
        if "proj" in name:
            weight.data.mul_(step)  # and with it the smallest change that bf16 can hold
    coarse.save_pretrained(tmp_path / "base")
    load_tokenizer(base).save_pretrained(tmp_path / "base")
    assert saved(adapted(tmp_path / "base", size, torch.bfloat16), base, tmp_path / "saved")["merge_kept"] < 0.9


@pytest.mark.parametrize("size", [0.05, 0.2])
def test_a_file_that_is_not_what_was_merged_is_refused(
    size: float, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(*args: Any, **options: Any) -> Any:
        model = load_model(*args, **options)
        model.lm_head.weight.data[3:8] = 0.0
        return model

    monkeypatch.setattr("stages.engines.merging.load_model", spoiled)
    with pytest.raises(ModelError, match="does not compute what was trained"):
        saved(adapted(base, size, torch.bfloat16), base, tmp_path)


@pytest.mark.parametrize("load", [load_model, load_classifier])
def test_what_is_read_again_is_what_was_rounded_to_the_last_bit(
    load: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[dict[str, float]] = []
    monkeypatch.setattr("stages.engines.merging.check", lambda found, folder: compared.append(found))
    options = {"new_head": True} if load is load_classifier else {}
    saved(adapted(base, 0.1, torch.bfloat16, load, **options), base, tmp_path)
    assert compared[1] == {"merge_drift": 0.0}


def test_weights_that_training_blew_up_are_told_as_what_they_are(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not numbers") as caught:
        saved(adapted(base, 1e38), base, tmp_path)
    assert "lower learning_rate" in caught.value.hint


def test_an_adapter_that_did_nothing_cannot_be_lost(base: Path, tmp_path: Path) -> None:
    found = saved(adapted(base, 1e-6, torch.bfloat16), base, tmp_path)
    assert found["merge_effect"] < 1e-4 and found["merge_kept"] < 0.5
    assert saved(adapted(base, 0.0), base, tmp_path / "fresh")["merge_kept"] == 1.0


@pytest.mark.parametrize("size", [0.01, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_merge_that_leaves_a_small_adapter_out_is_refused(
    size: float, dtype: torch.dtype, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self: self.unload(), raising=False)
    with pytest.raises(ModelError, match=r"it keeps -?\d% of what the adapter changed"):
        saved(adapted(base, size, dtype), base, tmp_path)
    assert json.loads((tmp_path / "merge.json").read_text())["merge_drift"] < 0.02  # too little to be seen by itself


def test_the_head_of_a_reward_model_is_saved_with_its_body(base: Path, tmp_path: Path) -> None:
    model = adapted(base, 0.1, torch.bfloat16, load_classifier, new_head=True)
    model.base_model.model.score.modules_to_save["default"].weight.data.mul_(3)
    found = saved(model, base, tmp_path)
    assert found["merge_effect"] > 0.01 and 0.9 < found["merge_kept"] < 1.1


def test_noise_beside_the_effect_is_no_loss_and_a_shrunk_effect_is() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 32, 100, generator=generator)
    effect, noise = (0.05 * torch.randn(4, 32, 100, generator=generator) for _ in range(2))
    untrained, trained = logits.log_softmax(-1), (logits + effect).log_softmax(-1)
    noisy = compare(trained, (logits + effect + noise).log_softmax(-1), untrained)
    shrunk = compare(trained, (logits + 0.4 * effect).log_softmax(-1), untrained)
    assert noisy["merge_kept"] == pytest.approx(1, abs=0.05) and shrunk["merge_kept"] == pytest.approx(0.4, abs=0.02)
    assert noisy["merge_drift"] > shrunk["merge_drift"]
