"""Packing changes where demos lie and nothing they are learned for."""

from typing import Any

import pytest
import torch

from pipeline.places import ROOT
from stages.engines.models import load_model
from stages.engines.packing import keeps_demos_apart, pack, packed
from tests.toy_model import tiny_llama

LENGTHS = [31, 7, 12, 12, 5, 3, 30, 1]
PROMPT = 2  # tokens of each demo that are not learned


def batch(lengths: list[int], prompt: int = PROMPT, vocabulary: int = 257) -> dict[str, torch.Tensor]:
    """Demos of random tokens, padded on the right; all but the first `prompt` tokens are learned."""
    ids = torch.randint(1, vocabulary, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    places = torch.arange(max(lengths))
    mask = (places < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": ids * mask,
        "labels": ids.masked_fill((mask == 0) | (places < prompt), -100),
        "attention_mask": mask,
    }


def loss(model: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed over the learned tokens."""
    inputs = {name: value for name, value in rows.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(
        logits, rows["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )


def gradients(model: Any, rows: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss(model, rows).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_every_demo_has_one_place_and_no_row_is_too_long() -> None:
    rows = pack(LENGTHS, width=31)
    assert sorted(i for row in rows for i in row) == list(range(len(LENGTHS)))
    assert all(sum(LENGTHS[i] for i in row) <= 31 for row in rows)
    assert len(rows) == 4  # 101 tokens cannot lie in three rows of 31


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompt", [PROMPT, 0], ids=["responses learned", "prompts learned too"])
def test_packed_demos_have_the_loss_and_the_gradient_of_unpacked_ones(attention: str, prompt: int) -> None:
    model = tiny_llama()
    model.set_attn_implementation(attention)
    plain = batch(LENGTHS, prompt)
    rows = packed(plain, LENGTHS, pack(LENGTHS, 31))
    assert torch.allclose(loss(model, rows), loss(model, plain), rtol=1e-6)
    expected = gradients(model, plain)
    assert all(torch.allclose(grad, expected[name], atol=1e-5) for name, grad in gradients(model, rows).items())


def test_packed_loss_on_the_mini_base_is_the_unpacked_one() -> None:
    model = load_model(ROOT / "models/mini-base", device="cpu")
    plain = batch(LENGTHS, vocabulary=640)
    num_learned = (plain["labels"][:, 1:] != -100).sum()
    rows = packed(plain, LENGTHS, pack(LENGTHS, 31))
    with torch.no_grad():
        assert abs(loss(model, rows) - loss(model, plain)) / num_learned < 1e-5


def test_a_packed_demo_does_not_see_its_neighbours() -> None:
    model = tiny_llama()
    plain = batch([10, 10])
    other = {name: value.clone() for name, value in plain.items()}
    other["input_ids"][0] = (other["input_ids"][0] + 5) % 257
    wide = {name: torch.nn.functional.pad(value, (0, 10)) for name, value in plain.items()}
    wide_other = {name: torch.nn.functional.pad(value, (0, 10)) for name, value in other.items()}
    with torch.no_grad():
        one, two = (
            model(**{k: v for k, v in packed(b, [10, 10], [[0, 1]]).items() if k != "labels"}, use_cache=False).logits
            for b in (wide, wide_other)
        )
    assert torch.equal(one[0, 10:], two[0, 10:])
    assert not torch.equal(one[0, :10], two[0, :10])


class LooksBack(torch.nn.Module):
    """A model that reads a packed row as one text: it forgets the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_llama()
        self.config = self.inner.config
        self.device = self.inner.device

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> Any:
        return self.inner(input_ids=input_ids, use_cache=use_cache)


def test_a_model_that_would_look_across_demos_is_found_out() -> None:
    assert keeps_demos_apart(tiny_llama())
    assert not keeps_demos_apart(LooksBack())
