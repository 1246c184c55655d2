"""The plain copy that is sampled from says what the model in training does, and leaves it alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from stages.engines import plain_copy, training_sampler
from stages.engines.layer_weights import gathered
from stages.engines.models import attach_lora
from stages.engines.plain_copy import PlainCopy, can_be_plain, has_room
from stages.engines.samplers import Sampling, TransformersSampler
from stages.engines.training_sampler import TrainingSampler
from tests.test_layerwise import FAMILIES, adapted, in_4_bits
from tests.test_samplers import PROMPTS, byte_tokenizer
from tests.test_token_budget import trainer
from tests.toy_model import tiny_llama

IDS = torch.arange(1, 25).view(2, 12)


def moved(model: Any, seed: int) -> Any:
    """The model with another adapter."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.2)
    return model


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_its_logits_are_those_of_the_model_after_every_update(family: str, targets: Any) -> None:
    model = adapted(family, target_modules=targets)
    before = {name: value.clone() for name, value in model.state_dict().items() if "lora_" not in name}
    plain = PlainCopy(model)
    for seed in range(2):
        moved(model, seed)
        plain.fill()
        assert not any(hasattr(layer, "lora_A") for layer in plain.model.modules())
        assert torch.allclose(plain.model(IDS).logits, model(IDS).logits, atol=1e-5)
        plain.drop()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert plain.model.lm_head.weight is model.get_base_model().lm_head.weight


def test_four_bit_weights_are_unpacked_into_it() -> None:
    model = moved(attach_lora(in_4_bits(), 4, 8), 0)
    plain = PlainCopy(model)
    assert plain.num_missing_bytes == 4 * 3 * (4 * 128 * 128 + 3 * 128 * 384)
    plain.fill()
    assert plain.num_missing_bytes == 0
    assert torch.allclose(plain.model(IDS).logits, model(IDS).logits, atol=1e-4)


def packed(model: Any) -> list[torch.Tensor]:
    """All 4-bit weights and their scales, as they lie in memory."""
    weights = [layer.weight for layer in model.modules() if isinstance(layer, Linear4bit)]
    return [part for weight in weights for part in (weight.data, weight.quant_state.absmax)]


def num_there(model: Any) -> int:
    """Pieces of memory that hold packed weights or scales."""
    storages = [part.untyped_storage() for part in packed(model)]
    return len({storage.data_ptr() for storage in storages if storage.nbytes()})


@pytest.mark.parametrize(
    ("targets", "num_needed"), [("all-linear", 0), (["gate_proj", "up_proj", "down_proj"], 3 * 2)], ids=["all", "mlp"]
)
def test_packed_weights_leave_while_the_copy_is_there_and_come_back_as_they_were(
    targets: Any, num_needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attach_lora(in_4_bits(), 4, 8, target_modules=targets)
    gathered(model.get_base_model().model)
    before = [part.clone() for part in packed(model)]
    plain, seen = PlainCopy(model), []
    unpack = plain_copy.unpack
    monkeypatch.setattr(plain_copy, "unpack", lambda *words: seen.append(num_there(model)) or unpack(*words))
    for seed in range(2):
        expected = moved(model, seed)(IDS).logits
        plain.fill(packed_leave=True)
        assert num_there(model) == num_needed
        assert torch.allclose(plain.model(IDS).logits, expected, atol=1e-4)
        plain.drop()
        assert all(torch.equal(part, value) for part, value in zip(packed(model), before, strict=True))
    assert max(seen) == num_needed + 2  # the weights and the scales of one group at a time
    assert torch.allclose(model(IDS).logits, expected, atol=1e-6)


def test_packed_weights_leave_only_where_they_and_the_copy_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU with so much memory free."""
    model = moved(attach_lora(in_4_bits(vocab_size=257), 4, 8), 0)
    monkeypatch.setattr(TrainingSampler, "_on_gpu", True)
    monkeypatch.setattr(training_sampler, "has_room", lambda num_bytes, *_: num_bytes <= free[-1] / 2)
    monkeypatch.setattr(training_sampler, "free_bytes", lambda *_: free[-1])
    monkeypatch.setattr(training_sampler, "_LEAST_TOKENS", 64)
    sampler, copy = TrainingSampler(model, byte_tokenizer()), PlainCopy(model)
    least = copy.num_missing_bytes - copy.num_packed_bytes + int(64 * sampler._bytes_per_token(64))
    free: list[int] = []
    found, texts = [], []
    for num_bytes in (2 * copy.num_missing_bytes, least, least - 1):
        free.append(num_bytes)
        sampler.sync(model, 0)
        found.append((sampler.model is not model, num_there(model) > 0))
        texts.append(sampler.generate(PROMPTS, 2, Sampling(max_new_tokens=8)))
        sampler.sleep()
        assert sampler.model is model and num_there(model) > 0
    assert found == [(True, True), (True, False), (False, True)]
    assert [[c.token_ids for c in group] for group in texts[0]] == [[c.token_ids for c in group] for group in texts[1]]


def test_it_samples_what_the_model_in_training_would() -> None:
    model = moved(attach_lora(tiny_llama(), 4, 8), 0)
    sampler, live = TrainingSampler(model, byte_tokenizer()), TransformersSampler(model, byte_tokenizer())
    assert not sampler.trained_elsewhere
    for seed in range(2):
        moved(model, seed).train()
        sampler.sync(model, seed)
        found, expected = (one.generate(PROMPTS, 3, Sampling(max_new_tokens=12)) for one in (sampler, live))
        assert [[c.token_ids for c in group] for group in found] == [[c.token_ids for c in group] for group in expected]
        assert model.training
        sampler.sleep()


def test_inside_a_trainer_of_trl_it_is_the_copy_that_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trainer(tmp_path, moved(attach_lora(tiny_llama(), 4, 8), 0)).model
    assert "forward" in vars(model.get_base_model())
    expected = model(IDS).logits
    plain = PlainCopy(model)
    plain.fill()
    for layer in model.modules():
        if hasattr(layer, "lora_A"):
            monkeypatch.setattr(layer, "forward", None)
    assert torch.allclose(plain.model(IDS).logits, expected, atol=1e-5)


def test_a_model_that_was_loaded_again_is_the_one_that_is_sampled_from() -> None:
    first, second = (moved(attach_lora(tiny_llama(), 4, 8), seed) for seed in range(2))
    sampler = TrainingSampler(first, byte_tokenizer())
    sampler.sync(first, 0)
    sampler.sync(second, 0)
    assert torch.allclose(sampler.model(IDS).logits, second(IDS).logits, atol=1e-5)


def test_without_a_plain_adapter_or_without_room_the_model_itself_is_sampled_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not can_be_plain(tiny_llama())
    assert not can_be_plain(adapted("llama", dropout=0.1))
    model = attach_lora(tiny_llama(), 4, 8)
    monkeypatch.setattr("stages.engines.plain_copy.machine_bytes", lambda: 4 * 1000)
    assert has_room(1000, model.device, None) and not has_room(1001, model.device, None)
    sampler = TrainingSampler(model, byte_tokenizer())
    sampler.sync(model, 0)
    assert sampler.model is model
