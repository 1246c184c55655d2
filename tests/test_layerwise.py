"""The core computes what the model does, and its gradients, whatever the plan."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.training_args import OptimizerNames

from pipeline.errors import ResourceError
from stages.engines.core import Core
from stages.engines.flat_rows import flat_completions, flat_demos
from stages.engines.layer_weights import ATTENTION, MLP, gathered, unpacked
from stages.engines.layerwise import can_go_layerwise, line_terms
from stages.engines.logprob_head import head_terms, sliced_head_terms
from stages.engines.models import attach_lora
from stages.engines.outer_weights import OuterWeights, slices
from stages.memory_plan import Plan
from tests.test_token_budget import LOSSES, random_batch, trainer, whole_batch_gradients
from tests.toy_model import tiny_llama

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True)),
}
PLANS = {
    "all at once": Plan(999, "gpu", True, 999, 999),
    "attention again": Plan(999, "gpu", False, 999, 999),
    "tiles": Plan(999, "host", True, 5, 3),
    "smallest": Plan(999, "host", False, 1, 1),
}


def adapted(family: str, **lora: Any) -> Any:
    """A random model with a random adapter; biases and norms are random too, as in a trained one."""
    torch.manual_seed(3)
    model = attach_lora(FAMILIES[family]().eval(), 4, 8, **lora)
    for name, weight in model.named_parameters():
        if "lora_B" in name or "bias" in name or "norm" in name:
            weight.data += 0.2 * torch.randn_like(weight)
    return model


def batch(seed: int) -> dict[str, torch.Tensor]:
    """Three prompts of 1-7 tokens with three completions each of 0-9, as TRL lays them out."""
    g = torch.Generator().manual_seed(seed)
    prompt_mask = (torch.arange(7) >= 7 - torch.randint(1, 8, (3, 1), generator=g)).long()
    prompt_ids = torch.randint(1, 97, (3, 7), generator=g) * prompt_mask
    lengths = torch.randint(0, 10, (9, 1), generator=g)
    lengths[:2] = torch.tensor([[1], [9]])
    completion_mask = (torch.arange(9) < lengths).long()
    order = torch.randperm(9, generator=g)
    made = {
        "prompt_ids": prompt_ids.repeat_interleave(3, 0),
        "prompt_mask": prompt_mask.repeat_interleave(3, 0),
        "completion_ids": torch.randint(1, 97, (9, 9), generator=g) * completion_mask,
        "completion_mask": completion_mask,
    }
    return {name: value[order] for name, value in made.items()}


def plain(model: Any, rows: dict[str, torch.Tensor], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (9, 9), by the model's own forward pass over padded rows."""
    mask = torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1)
    ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, 6:-1] / temperature
    logps = logits.log_softmax(-1)
    entropies = -(logps.exp() * logps).sum(-1)
    return logps.gather(2, rows["completion_ids"][..., None]).squeeze(2), entropies


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = max(1.0, *(float(value.abs().max()) for value in expected.values()))
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-5 * scale, name


@pytest.mark.parametrize("share", [True, False], ids=["shared prompts", "repeated prompts"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_those_of_the_model_itself(family: str, plan: Plan, share: bool) -> None:
    model = adapted(family)
    assert can_go_layerwise(model)
    for seed in range(3):
        rows = batch(seed)
        kept = rows["completion_mask"].bool()
        weights = torch.randn(9, 9, generator=torch.Generator().manual_seed(seed))
        logps, entropies = plain(model, rows, 0.7)
        (logps * weights)[kept].sum().backward()
        expected = gradients(model)
        line = flat_completions(**rows, share=share)
        terms = line_terms(model, line, plan, 0.7)
        assert torch.allclose(terms.logps, logps[line.rows, line.columns], atol=1e-5)
        assert torch.allclose(terms.entropies, entropies[line.rows, line.columns], atol=1e-5)
        assert len(terms.logps) == kept.sum()
        (terms.logps * weights[line.rows, line.columns]).sum().backward()
        assert_same(gradients(model), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_head_in_slices_gives_what_a_whole_one_does(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    hidden, weight, targets = head(torch.float32)
    whole = head_terms(hidden, weight, targets, temperature, 7, True)
    monkeypatch.setattr("stages.memory_plan.SLICE_BYTES", 20 * 16 * 2)  # 97 words in slices of 20
    assert [(start, len(part)) for start, part in slices(weight, weight.device)][-1] == (80, 17)
    for needs_gradient in (True, False):
        sliced = sliced_head_terms(hidden, weight, targets, temperature, 7, needs_gradient)
        for one, other in zip(whole[:3], sliced[:3], strict=True):
            assert torch.allclose(one.float(), other.float(), atol=1e-4)
    sliced = sliced_head_terms(hidden, weight, targets, temperature, 7, True)
    assert torch.allclose(sliced.direction, whole.direction, atol=1e-5)  # type: ignore[arg-type]


def test_slices_in_bf16_lose_no_more_than_rounding_does_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = head_terms(*head(torch.float32), 1.0, 50, True).direction
    rounded = head_terms(*head(torch.bfloat16), 1.0, 50, True).direction
    monkeypatch.setattr("stages.memory_plan.SLICE_BYTES", 14 * 16 * 2)  # seven slices, as of a model of 1.5B
    sliced = sliced_head_terms(*head(torch.bfloat16), 1.0, 50, True).direction
    losses = [float((found.float() - exact).norm()) for found in (rounded, sliced)]  # type: ignore[union-attr]
    assert losses[1] < 1.5 * losses[0]


def test_packed_weights_that_lie_together_are_unpacked_to_what_they_were() -> None:
    model = in_4_bits()
    before = [unpacked(part, names, torch.float32, {}) for part, names in parts_of(model)]
    groups = gathered(model.model)
    assert len(groups) == len(before) == 2 * len(model.model.layers)
    for used in (groups, {}):  # the modules still see what the group does
        for (part, names), expected in zip(parts_of(model), before, strict=True):
            found = unpacked(part, names, torch.float32, used)
            assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(found, expected, strict=True))
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.weight.quant_state.state2.blocksize = 128
    assert not gathered(model.model)


def in_4_bits(vocab_size: int = SHAPE["vocab_size"]) -> Any:
    """Layers of 128 numbers: a block of 256 scales is of 16,384 weights."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_key_value_heads": 4, "vocab_size": vocab_size}
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **sizes}))
    for part, names in parts_of(model):
        for name in names:
            setattr(part, name, four_bits(getattr(part, name)))
    return model


def four_bits(base: torch.nn.Linear) -> Linear4bit:
    packed = Linear4bit(base.in_features, base.out_features, False, torch.float32, quant_type="nf4")
    packed.load_state_dict(base.state_dict())
    packed.weight = packed.weight._quantize("cpu")
    return packed


def parts_of(model: Any) -> list[tuple[Any, tuple[str, ...]]]:
    return [found for layer in model.model.layers for found in ((layer.self_attn, ATTENTION), (layer.mlp, MLP))]


def head(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, a head and targets, some of them the likeliest; the numbers are exact in bf16."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(97, 16, generator=generator).bfloat16().to(dtype)
    targets = torch.randint(0, 97, (50,), generator=generator)
    hidden = torch.randn(50, 16, generator=generator).bfloat16().to(dtype)
    hidden[::3] = weight[targets[::3]]
    return hidden, weight, targets


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_and_head_leave_and_come_back_as_they_were(family: str) -> None:
    model = adapted(family).get_base_model()
    weights = [model.model.embed_tokens.weight, model.lm_head.weight]
    before = [weight.detach().clone() for weight in weights]
    outer = OuterWeights(model)
    for _ in range(2):
        outer.leave()
        assert outer.away_bytes == sum(w.nbytes for w in {id(w): w for w in weights}.values())
        outer.come_back()
        assert outer.away_bytes == 0
    assert all(torch.equal(weight, value) for weight, value in zip(weights, before, strict=True))


def test_gradients_of_several_passes_add_up() -> None:
    model = adapted("qwen2")
    lines = [flat_completions(**batch(seed)) for seed in (0, 1)]
    plan = PLANS["tiles"]
    for line in lines:
        line_terms(model, line, plan).logps.sum().backward()
    together = gradients(model)
    parts = []
    for line in lines:
        line_terms(model, line, plan).logps.sum().backward()
        parts.append(gradients(model))
    assert_same(together, {name: parts[0][name] + parts[1][name] for name in together})


def test_demos_end_to_end_have_the_loss_and_gradient_of_padded_ones() -> None:
    model = adapted("llama")
    g = torch.Generator().manual_seed(0)
    lengths = [12, 3, 7, 1]
    mask = (torch.arange(12) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, 97, (4, 12), generator=g) * mask
    labels = ids.masked_fill((mask == 0) | (torch.arange(12) < 2), -100)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum").backward()
    expected = gradients(model)
    (-line_terms(model, flat_demos(ids, labels, lengths), PLANS["tiles"]).logps).sum().backward()
    assert_same(gradients(model), expected)


def test_an_adapter_on_some_layers_only_or_switched_off_is_respected() -> None:
    model, rows = adapted("qwen2", target_modules=["q_proj", "up_proj"]), batch(4)
    line = flat_completions(**rows)
    logps, _ = plain(model, rows, 1.0)
    logps[rows["completion_mask"].bool()].sum().backward()
    expected = gradients(model)
    line_terms(model, line, PLANS["tiles"]).logps.sum().backward()
    assert_same(gradients(model), expected)
    with torch.no_grad(), model.disable_adapter():
        bare, _ = plain(model, rows, 1.0)
        assert torch.allclose(line_terms(model, line, PLANS["tiles"]).logps, bare[line.rows, line.columns], atol=1e-5)
        assert not torch.allclose(bare, logps, atol=1e-2)


def test_models_that_compute_something_else_are_not_taken() -> None:
    assert not can_go_layerwise(FAMILIES["llama"]())  # no adapter: all weights have gradients
    assert not can_go_layerwise(adapted("llama", dropout=0.1))
    windows = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert not can_go_layerwise(attach_lora(Qwen2ForCausalLM(windows), 4, 8))
    model = adapted("qwen2")
    model.get_base_model().model.norm.weight.requires_grad_(True)
    assert not can_go_layerwise(model)


@pytest.mark.parametrize("settings", LOSSES, ids=lambda s: " ".join(str(v) for v in s.values()))
def test_grpo_on_the_core_has_the_gradient_of_trls_own_pass(settings: dict[str, Any], tmp_path: Path) -> None:
    model = attach_lora(tiny_llama(), 4, 8)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05)
    t = trainer(tmp_path, model, budget=40, **settings)
    t.model.train()
    for seed in range(2):
        batch = random_batch(seed, offpolicy=seed == 0, beta=settings.get("beta", 0.0))
        loss, expected = whole_batch_gradients(t, batch)
        t.model.zero_grad()
        t.core = Core(t.model, "adamw_torch")
        total = t._accumulate(t.model, batch)
        assert len(t._micro_batches(t.model, batch, t._contributing(batch))) > 1
        assert total.item() == pytest.approx(loss, abs=1e-5)
        assert_same(gradients(t.model), expected)
        t.core = None


def test_training_on_the_core_moves_the_adapter_as_training_without_it_does(tmp_path: Path) -> None:
    """The optimiser sees one weight; clipping, saving and loading see each."""
    adapters = {}
    for uses_core in (False, True):
        torch.manual_seed(0)
        t = trainer(tmp_path, attach_lora(tiny_llama(), 4, 8), learning_rate=0.01, weight_decay=0.1)
        t.model.train()
        t.core = Core(t.model, "adamw_torch") if uses_core else None
        optimizer = t.create_optimizer()
        for seed in range(3):
            t._accumulate(t.model, random_batch(seed, offpolicy=False))
            torch.nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
            t.model.zero_grad()
        assert len(optimizer.param_groups[0]["params"]) == (1 if uses_core else 28)
        t.model.save_pretrained(tmp_path / str(uses_core))
        adapters[uses_core] = load_file(tmp_path / str(uses_core) / "adapter_model.safetensors")
    assert_same(adapters[True], adapters[False])


def test_a_step_without_any_advantage_leaves_the_adapter_alone(tmp_path: Path) -> None:
    """Not even the momentum of the steps before moves it; and the next step counts for itself."""
    moved = {}
    for uses_core in (False, True):
        torch.manual_seed(0)
        t = trainer(tmp_path, attach_lora(tiny_llama(), 4, 8), learning_rate=0.01)
        t.model.train()
        t.core = Core(t.model, "adamw_torch") if uses_core else None
        optimizer = t.create_optimizer()
        states = []
        for seed, size in enumerate((1.0, 0.0, 1.0)):
            batch = random_batch(seed, offpolicy=False)
            batch["advantages"] *= size
            t.over_ranks(t.model, partial(t._accumulate, batch=batch))
            optimizer.step()
            t.model.zero_grad()  # as transformers' Trainer does; it has the optimiser forget nothing
            states.append({name: w.detach().clone() for name, w in t.model.named_parameters() if w.requires_grad})
        assert_same(states[1], states[0])
        moved[uses_core] = states[2]
    assert_same(moved[True], moved[False])


def test_what_a_step_makes_anew_is_gone_between_steps_and_the_next_step_is_as_ever(tmp_path: Path) -> None:
    t = trainer(tmp_path, attach_lora(tiny_llama(), 4, 8))
    core = t.core = Core(t.model, "adamw_torch")
    batch, found = random_batch(0, offpolicy=False), []
    for _ in range(2):
        t.over_ranks(t.model, partial(t._accumulate, batch=batch))
        core.rest()  # before the gradient was used: it stays
        found.append({name: value.clone() for name, value in gradients(t.model).items()})
        t.model.zero_grad()
        core.rest()
        assert not core._gradient.untyped_storage().nbytes() and not core._copy.untyped_storage().nbytes()
    assert_same(*found)


def test_embedding_and_head_are_away_until_the_step_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t = trainer(tmp_path, attach_lora(tiny_llama(), 4, 8), budget=40)
    core = t.core = Core(t.model, "adamw_torch")
    core.plan = replace(core.plan, outer="host")
    terms, away = core.terms, []
    monkeypatch.setattr(core, "terms", lambda *args: away.append(core.outer.away_bytes) or terms(*args))
    batch = random_batch(0, offpolicy=False)
    for look in (
        lambda: t.over_ranks(t.model, partial(t._accumulate, batch=batch)),
        lambda: t._logps_in_parts(t.model, batch),
    ):
        away.clear()
        look()
        assert away and all(away) and core.outer.away_bytes
        core.rest()
        assert core.outer.away_bytes == 0
    look()
    core.plan = replace(core.plan, outer="gpu")  # a step without a rest before it
    look()
    assert core.outer.away_bytes == 0


def test_a_step_that_ran_out_of_memory_goes_on_with_less(tmp_path: Path) -> None:
    core = Core(adapted("llama"), OptimizerNames.ADAMW_8BIT)
    assert core.setup.optimizer_bytes == 2
    notes = [core.lower() for _ in range(3)]
    assert notes[-1] == "out of GPU memory: going on with 51% of it"
    with pytest.raises(ResourceError, match="even for the smallest plan"):
        for _ in range(9):
            core.lower()
