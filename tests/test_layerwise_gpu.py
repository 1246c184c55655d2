"""The core on CUDA: its kernels, its copies to the host and 4-bit weights, against the model's own forward pass."""

from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from transformers import Qwen2Config, Qwen2ForCausalLM

from stages.engines import long_attention
from stages.engines.flat_rows import FlatRows, flat_completions
from stages.engines.layer_weights import gathered
from stages.engines.layerwise import line_terms
from stages.engines.models import attach_lora
from stages.engines.outer_weights import OuterWeights
from stages.engines.plain_copy import PlainCopy
from stages.memory_plan import Plan
from tests.test_layerwise import SHAPE, assert_same, batch, gradients, parts_of, plain

pytestmark = pytest.mark.gpu
ROWS = {name: value.to("cuda") for name, value in batch(0).items()} if torch.cuda.is_available() else {}
SLICE_BYTES = 30 * 256 * 2  # 97 words in four slices
PLANS = {
    "all at once": Plan(999, "gpu", True, 999, 999),
    "tiles": Plan(999, "host", True, 5, 3),
    "smallest": Plan(999, "host", False, 2, 2),
    "head in slices": Plan(999, "host", True, 5, 3, "host"),
}


def adapted(dtype: torch.dtype) -> Any:
    """Heads of 64 numbers, as the flash kernels want them."""
    torch.manual_seed(3)
    size = {"hidden_size": 256, "intermediate_size": 640, "tie_word_embeddings": True}
    model = attach_lora(Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, **size})).to(dtype).cuda().eval(), 8, 16)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).cuda()
    return model


def by_the_model(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    kept = ROWS["completion_mask"].bool()
    with torch.autocast("cuda", torch.bfloat16, enabled=model.dtype != torch.float32):
        logps, _ = plain(model, ROWS, 0.7)
    logps[kept].mean().backward()
    return logps, gradients(model)


def by_the_core(model: Any, plan: Plan) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    line = flat_completions(**ROWS)
    if plan.outer == "host":
        OuterWeights(model.get_base_model()).leave()
    terms = line_terms(model, line, plan, 0.7)
    terms.logps.mean().backward()
    found = torch.zeros(9, 9, device="cuda")
    found[line.rows.cuda(), line.columns.cuda()] = terms.logps.detach()
    return found, gradients(model)


@pytest.fixture(autouse=True)
def _in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.memory_plan.SLICE_BYTES", SLICE_BYTES)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_in_fp32_the_gradients_are_those_of_the_model(plan: Plan) -> None:
    model = adapted(torch.float32)
    kept = ROWS["completion_mask"].bool()
    expected, wanted = by_the_model(model)
    for _ in range(2):  # the second time buffers on the host are used again
        logps, found = by_the_core(model, plan)
        assert torch.allclose(logps[kept], expected[kept], atol=1e-4)
        assert_same(found, wanted)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_in_bf16_it_is_no_further_from_fp32_than_the_model_itself(plan: Plan) -> None:
    kept = ROWS["completion_mask"].bool()
    exact, wanted = by_the_model(adapted(torch.float32))
    own, own_grads = by_the_model(adapted(torch.bfloat16))
    logps, grads = by_the_core(adapted(torch.bfloat16), plan)
    assert error({"": logps[kept]}, {"": exact[kept]}) < 1.5 * error({"": own[kept]}, {"": exact[kept]}) + 1e-4
    assert error(grads, wanted) < 1.5 * error(own_grads, wanted) + 1e-3


def test_four_bit_weights_give_what_the_same_weights_do_unpacked() -> None:
    packed, unpacked = adapted(torch.bfloat16), adapted(torch.bfloat16)
    for layer, other in zip(packed.modules(), unpacked.modules(), strict=True):
        if hasattr(layer, "lora_A"):
            base = layer.base_layer
            layer.base_layer = four_bits(base)
            weight = layer.base_layer.weight
            other.base_layer.weight.data = dequantize_4bit(weight.data, weight.quant_state)
            assert not torch.equal(other.base_layer.weight, base.weight)
    logps, grads = by_the_core(packed, PLANS["tiles"])
    expected, wanted = by_the_core(unpacked, PLANS["tiles"])
    assert torch.allclose(logps, expected, atol=1e-3)
    assert error(grads, wanted) < 1e-2  # the attention's backward kernel adds up in any order


def test_asked_for_an_order_the_gradients_are_the_same_bit_for_bit() -> None:
    ids = torch.randint(1, 97, (16, 600), generator=torch.Generator().manual_seed(0)).cuda()
    prompts, completions = ids[:1, :200].repeat(16, 1), ids[:, 200:]
    line = flat_completions(prompts, torch.ones_like(prompts), completions, torch.ones_like(completions))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        found = [ordered_gradients(line) for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(other[name], value) for other in found[1:] for name, value in found[0].items())


def test_the_gradients_of_a_long_row_by_cudnn_are_those_by_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("cuDNN's attention is asked on Hopper GPUs and newer ones")
    assert long_attention._computes(4, 2, 64, torch.bfloat16, torch.device("cuda", 0))
    ids = torch.randint(1, 97, (1, 9000), generator=torch.Generator().manual_seed(0)).cuda()
    line = flat_completions(ids[:, :300], torch.ones_like(ids[:, :300]), ids[:, 300:], torch.ones_like(ids[:, 300:]))
    asked, backward = [], long_attention._backward
    monkeypatch.setattr(long_attention, "_backward", lambda *inputs: asked.append(1) or backward(*inputs))
    by_cudnn = ordered_gradients(line)
    assert len(asked) == 3  # once a layer
    monkeypatch.setattr(long_attention, "helps", lambda q, k: False)
    by_flash = ordered_gradients(line)
    assert len(asked) == 3 and error(by_cudnn, by_flash) < 2e-2


def ordered_gradients(line: FlatRows) -> dict[str, torch.Tensor]:
    model = adapted(torch.bfloat16)
    line_terms(model, line, Plan(9999, "gpu", True, 9999, 9999)).logps.mean().backward()
    return gradients(model)


def test_packed_weights_are_not_on_the_gpu_while_their_copy_is() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 8}
    base = Qwen2ForCausalLM(Qwen2Config(**{**SHAPE, **sizes})).to(torch.bfloat16).cuda().eval()
    for part, names in parts_of(base):
        for name in names:
            setattr(part, name, four_bits(getattr(part, name)))
    model, ids = attach_lora(base, 8, 16).eval(), torch.arange(1, 25, device="cuda").view(2, 12)
    assert len(gathered(base.model)) == 6
    with torch.no_grad():
        expected = model(ids).logits
        copy, before = PlainCopy(model), torch.cuda.memory_allocated()
        more = copy.num_missing_bytes - copy.num_packed_bytes
        copy.fill(packed_leave=True)
        assert abs(torch.cuda.memory_allocated() - before - more) < 2**20
        assert error({"": copy.model(ids).logits}, {"": expected.float()}) < 2e-2
        copy.drop()
        assert abs(torch.cuda.memory_allocated() - before) < 2**20
        assert torch.allclose(model(ids).logits, expected)


def four_bits(base: torch.nn.Linear) -> Linear4bit:
    packed = Linear4bit(base.in_features, base.out_features, base.bias is not None, torch.bfloat16, quant_type="nf4")
    packed.load_state_dict(base.state_dict())
    return packed.to(torch.bfloat16).cuda()


def error(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    """Relative, over all tensors together."""
    apart = sum(float((found[name].float() - value).square().sum()) for name, value in exact.items())
    return float((apart / sum(float(value.square().sum()) for value in exact.values())) ** 0.5)
