"""A long row that is alone: the padding behind it and cuDNN's attention change nothing but the time."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from stages.engines import attention, long_attention
from stages.engines.flat_rows import flat_completions, flat_demos
from stages.engines.layerwise import line_terms
from stages.memory_plan import Plan
from tests.test_layerwise import FAMILIES, adapted, assert_same, gradients

PLAN = Plan(99, "gpu", True, 99, 99)
IDS = torch.randint(1, 97, (1, 21), generator=torch.Generator().manual_seed(0))
ONES = torch.ones_like(IDS)


@pytest.fixture(autouse=True)
def _short_rows_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_attention, "LEAST_TOKENS", 12)
    monkeypatch.setattr(long_attention, "STEP", 8)


def row(num_prompt: int = 5) -> Any:
    return flat_completions(IDS[:, :num_prompt], ONES[:, :num_prompt], IDS[:, num_prompt:], ONES[:, num_prompt:])


def by_the_model(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    logps = model(input_ids=IDS).logits[0, 4:-1].log_softmax(-1).gather(1, IDS[0, 5:, None])[:, 0]
    logps.mean().backward()
    return logps.detach(), gradients(model)


def by_the_core(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    terms = line_terms(model, row(), PLAN)
    terms.logps.mean().backward()
    return terms.logps.detach(), gradients(model)


def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """As cuDNN answers: (1, H, T, D) laid out as the queries are, and (1, H, T, 1)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    lse = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.empty_like(q).copy_(scaled_dot_product_attention(q, k, repeated(v, q), is_causal=True)), lse


def backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
    assert d_out.stride() == out.stride()
    assert all(torch.allclose(kept, made, atol=1e-5) for kept, made in zip((out, lse), forward(q, k, v), strict=True))
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        made = scaled_dot_product_attention(q, repeated(k, q), repeated(v, q), is_causal=True)
        return torch.autograd.grad(made, (q, k, v), d_out)


def repeated(x: Tensor, q: Tensor) -> Tensor:
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def use(monkeypatch: pytest.MonkeyPatch, forward: Any, backward: Any) -> None:
    """Stand-ins for cuDNN, on a machine that says it is a Hopper GPU."""
    monkeypatch.setattr(long_attention, "_forward", forward)
    monkeypatch.setattr(long_attention, "_backward", backward)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    long_attention._computes.cache_clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_behind_a_long_row_changes_nothing(family: str) -> None:
    model = adapted(family)
    line = row()
    assert len(line.ids) == 24 and line.is_one_row and line.positions[-5:].tolist() == [19] * 5
    expected, wanted = by_the_model(model)
    logps, found = by_the_core(model)
    assert torch.allclose(logps, expected, atol=1e-5)
    assert_same(found, wanted)


def test_only_a_row_that_is_alone_and_long_is_padded() -> None:
    assert flat_demos(IDS, IDS, [21]).padding == 3
    assert flat_demos(IDS.repeat(2, 1), IDS.repeat(2, 1), [21, 21]).padding == 0
    assert flat_completions(*(x.repeat(2, 1) for x in (IDS[:, :5], ONES[:, :5], IDS[:, 5:], ONES[:, 5:]))).padding == 0
    assert flat_demos(IDS, IDS, [11]).padding == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_by_cudnn_gradients_are_those_of_the_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    use(monkeypatch, lambda *inputs: asked.append(1) or forward(*inputs), backward)
    monkeypatch.setattr(attention, "_has_kernel", lambda q: True)
    monkeypatch.setattr(long_attention, "helps", lambda q, k: True)
    model = adapted(family)
    expected, wanted = by_the_model(model)
    logps, found = by_the_core(model)
    assert len(asked) == 3  # once a layer
    assert torch.allclose(logps, expected, atol=1e-5)
    assert_same(found, wanted)


def none(*_: Any) -> Any:
    raise RuntimeError("No available kernel")


def off(*inputs: Tensor) -> tuple[Tensor, ...]:
    d_q, *others = backward(*inputs)
    return (1.1 * d_q, *others)


@pytest.mark.parametrize(
    ("forward", "backward", "computes"), [(forward, backward, True), (none, backward, False), (forward, off, False)]
)
def test_cudnn_is_believed_once_it_has_given_what_attention_is(
    forward: Any, backward: Any, computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, forward, backward)
    assert long_attention._computes(4, 2, 16, torch.float32, torch.device("cpu")) == computes
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 9))
    long_attention._computes.cache_clear()
    assert not long_attention._computes(4, 2, 16, torch.float32, torch.device("cpu"))
