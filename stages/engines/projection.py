"""Linear layers that read the same input, frozen, each with its LoRA: one matrix product for all of them.

PEFT computes `x Wᵀ + s (x Aᵀ) Bᵀ` layer by layer and unpacks 4-bit weights for each micro-batch. Here the weights of
the layers that share an input are one matrix, and so are their A:

    forward    x Wᵀ + s (x Aᵀ) Bᵀ
    backward   dy W + (s dy B) A,   (s dy B)ᵀ x for A,   s dyᵀ (x Aᵀ) for B

Only the adapter's small matrices get a gradient. The weights stay apart from the adapter, so nothing is rounded that
PEFT does not round.

Shapes: T tokens, I inputs, O outputs of all layers together, R ranks of all adapters together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.engines.layer_weights import base_of

Copies = Mapping[int, Tensor]
"""Weights of adapters in the type that is computed in, by the id of the parameter; what is not there is cast anew."""


@dataclass(frozen=True)
class _Part:
    """One adapter of a projection: its rows of the output, its columns of the low-rank terms."""

    rows: slice
    columns: slice
    scaling: float
    a: Tensor
    b: Tensor
    up: Tensor
    """B as it is computed with."""


class Projection:
    """See the module docstring. Lives for one pass over one layer. `weight` is that of all `layers`, (O, I)."""

    def __init__(self, layers: Sequence[Any], weight: Tensor, copies: Copies) -> None:
        self.weight, self.bias = weight, _bias(layers, weight.dtype)
        self.parts: list[_Part] = []
        downs: list[Tensor] = []
        row = column = 0
        for layer in layers:
            if found := adapter_of(layer):
                a, b, scaling = found
                down, up = (copies.get(id(w), w.detach()).to(weight.dtype) for w in (a, b))
                rows, columns = slice(row, row + layer.out_features), slice(column, column + len(a))
                self.parts.append(_Part(rows, columns, scaling, a, b, up))
                downs.append(down)
                column += len(a)
            row += layer.out_features
        self.down = stacked(downs) if downs else None

    def forward(self, x: Tensor) -> Tensor:
        """(T, I) to (T, O)."""
        found = F.linear(x, self.weight, self.bias)
        if self.down is not None:
            low = x @ self.down.T
            for part in self.parts:
                found[:, part.rows].addmm_(low[:, part.columns], part.up.T, alpha=part.scaling)
        return found

    def backward(self, dy: Tensor, x: Tensor) -> Tensor:
        """Gradient of `x`, (T, I); adds to the gradients of the adapters."""
        dx = dy @ self.weight
        if self.down is None:
            return dx
        d_low = dy.new_empty(len(dy), len(self.down))
        for part in self.parts:
            here = d_low[:, part.columns]
            torch.addmm(here, dy[:, part.rows], part.up, beta=0, alpha=part.scaling, out=here)
        if self.parts[0].a.requires_grad:
            low = x @ self.down.T
            add_stacked([_gradient(part.a) for part in self.parts], d_low.T @ x)
            for part in self.parts:
                _gradient(part.b).add_(dy[:, part.rows].T @ low[:, part.columns], alpha=part.scaling)
        return dx.addmm_(d_low, self.down)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Matrices one below the other; without a copy where they lie so in memory."""
    if not _are_adjacent(parts):
        return torch.cat(list(parts))
    rows, width = sum(map(len, parts)), parts[0].shape[1]
    return parts[0].as_strided((rows, width), (width, 1))


def add_stacked(parts: Sequence[Tensor], value: Tensor) -> None:
    """Adds to matrices what belongs to them of a matrix as high as all of them."""
    if _are_adjacent(parts):
        stacked(parts).add_(value)
        return
    for part, own in zip(parts, value.split([len(part) for part in parts]), strict=True):
        part.add_(own)


def _are_adjacent(parts: Sequence[Tensor]) -> bool:
    return all(part.is_contiguous() for part in parts) and all(
        one.data_ptr() + one.nbytes == two.data_ptr()
        and one.untyped_storage().data_ptr() == two.untyped_storage().data_ptr()
        for one, two in pairwise(parts)
    )


def is_plain(layer: Any) -> bool:
    """Whether this class computes what the layer would: a linear layer with at most one LoRA and no dropout."""
    if not hasattr(layer, "lora_A"):
        return isinstance(layer, torch.nn.Linear)
    names = layer.active_adapters
    known = [name for name in names if name in layer.lora_A]
    has_dropout = any(getattr(layer.lora_dropout[name], "p", 0) for name in known)
    plain_variant = not getattr(layer, "lora_variant", {}) and not any(
        getattr(layer, "lora_bias", {}).get(name) for name in known
    )
    return len(names) <= 1 and not layer.merged and not has_dropout and plain_variant


def adapter_of(layer: Any) -> tuple[Tensor, Tensor, float] | None:
    """A, B and the scaling of the adapter in use; None where there is none, or it is switched off."""
    if not hasattr(layer, "lora_A") or layer.disable_adapters:
        return None
    [name] = layer.active_adapters
    if name not in layer.lora_A:
        return None
    return layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])


def _bias(layers: Sequence[Any], dtype: torch.dtype) -> Tensor | None:
    bases = [base_of(layer) for layer in layers]
    if all(base.bias is None for base in bases):
        return None
    return torch.cat(
        [base.weight.new_zeros(base.out_features) if base.bias is None else base.bias for base in bases]
    ).to(dtype)


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
