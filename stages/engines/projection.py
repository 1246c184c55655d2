"""Linear layers that read the same input, frozen, each with its LoRA: one matrix product for all of them.

PEFT computes `x Wᵀ + s (x Aᵀ) Bᵀ` layer by layer: every term is a pass over memory as wide as the layer's output, and
4-bit weights are unpacked for each micro-batch. Here the weights of the layers that share an input are unpacked once
for a pass, side by side with `s B`, so that

    forward    [x, x Aᵀ] [W, s B]ᵀ      one product gives the outputs of all, with their adapters
    backward   dy [W, s B]              gives dx and what A's gradient needs

and only the adapter's small matrices get a gradient. Nothing is rounded that PEFT does not round: the weights stay
apart from the adapter.

Shapes: T tokens, I inputs, O outputs of all layers together, R ranks of all adapters together.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class _Part:
    """One layer of a projection: its rows of the output, its columns of the low-rank terms, its adapter."""

    rows: slice
    columns: slice
    scaling: float
    a: Tensor | None
    b: Tensor | None


class Projection:
    """See the module docstring. Lives for one pass over one layer."""

    def __init__(self, layers: list[Any], dtype: torch.dtype) -> None:
        adapters = [_adapter(layer) for layer in layers]
        num_inputs, device = layers[0].in_features, next(layers[0].parameters()).device
        num_ranks = sum(a.shape[0] for a, _, _ in adapters if a is not None)
        num_outputs = sum(layer.out_features for layer in layers)
        self.num_inputs = num_inputs
        self.weight = torch.empty(num_outputs, num_inputs + num_ranks, dtype=dtype, device=device)
        self.weight[:, num_inputs:] = 0
        self.parts: list[_Part] = []
        row = column = 0
        for layer, (a, b, scaling) in zip(layers, adapters, strict=True):
            rank = 0 if a is None else a.shape[0]
            part = _Part(slice(row, row + layer.out_features), slice(column, column + rank), scaling, a, b)
            self.weight[part.rows, :num_inputs] = unpacked(layer, dtype)
            if b is not None:
                self.weight[part.rows, num_inputs + column : num_inputs + column + rank] = b.detach() * scaling
            self.parts.append(part)
            row, column = row + layer.out_features, column + rank
        downs = [a.detach().to(dtype) for a, _, _ in adapters if a is not None]
        self.down = torch.cat(downs) if downs else None
        self.bias = _bias(layers, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(T, I) to (T, O)."""
        if self.down is None:
            return F.linear(x, self.weight, self.bias)
        low = x @ self.down.T
        if self.weight.shape[0] > self.num_inputs:  # wide: one more column of x is cheaper than a pass over the output
            return F.linear(torch.cat([x, low], 1), self.weight, self.bias)
        found = F.linear(x, self.weight[:, : self.num_inputs], self.bias)
        return found.addmm_(low, self.weight[:, self.num_inputs :].T)

    def backward(self, dy: Tensor, x: Tensor) -> Tensor:
        """Gradient of `x`, (T, I); adds to the gradients of the adapters."""
        found = dy @ self.weight
        if self.down is None:
            return found
        dx, d_low = found[:, : self.num_inputs], found[:, self.num_inputs :]
        d_downs, low = d_low.T @ x, x @ self.down.T
        for part in self.parts:
            if part.a is not None and part.b is not None and part.a.requires_grad:
                _add_gradient(part.a, d_downs[part.columns])
                _add_gradient(part.b, (dy[:, part.rows].T @ low[:, part.columns]).mul_(part.scaling))
        return dx.addmm_(d_low, self.down)


def unpacked(layer: Any, dtype: torch.dtype) -> Tensor:
    """The frozen weight of a layer, out of its 4 bits."""
    weight = _base(layer).weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.detach().to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state).to(dtype)


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


def _base(layer: Any) -> Any:
    return layer.get_base_layer() if hasattr(layer, "lora_A") else layer


def _adapter(layer: Any) -> tuple[Tensor | None, Tensor | None, float]:
    """A, B and the scaling of the adapter in use; None where there is none, or it is switched off."""
    if not hasattr(layer, "lora_A") or layer.disable_adapters:
        return None, None, 0.0
    [name] = layer.active_adapters
    if name not in layer.lora_A:
        return None, None, 0.0
    return layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])


def _bias(layers: list[Any], dtype: torch.dtype) -> Tensor | None:
    bases = [_base(layer) for layer in layers]
    if all(base.bias is None for base in bases):
        return None
    return torch.cat(
        [base.weight.new_zeros(base.out_features) if base.bias is None else base.bias for base in bases]
    ).to(dtype)


def _add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient.to(parameter.dtype)
        if parameter.grad.data_ptr() == gradient.data_ptr():  # a view would hold the whole of its tensor
            parameter.grad = gradient.clone()
    else:
        parameter.grad.add_(gradient)
