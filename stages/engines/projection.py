"""Linear layers that read the same input, frozen, each with its LoRA: one matrix product for all of them.

PEFT computes `x Wᵀ + s (x Aᵀ) Bᵀ` layer by layer and unpacks 4-bit weights for each micro-batch. Here the weights of
the layers that share an input are unpacked once for a pass, one below the other, and the adapters' matrices side by
side, so that few large products give the outputs of all, and few their gradients:

    forward    x Wᵀ + (x Aᵀ) (s B)ᵀ
    backward   dy W + (dy s B) A,   (dy s B)ᵀ x for A,   dyᵀ (x Aᵀ) for B

Only the adapter's small matrices get a gradient. The weights stay apart from the adapter, so nothing is rounded that
PEFT does not round.

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
        num_inputs, device = layers[0].in_features, _base(layers[0]).weight.device
        num_outputs = sum(layer.out_features for layer in layers)
        downs = [a.detach() for a, _, _ in adapters if a is not None]
        self.down = torch.cat(downs).to(dtype) if downs else None
        self.weight = torch.empty(num_outputs, num_inputs, dtype=dtype, device=device)
        self.up = torch.zeros(num_outputs, sum(map(len, downs)), dtype=dtype, device=device)
        self.parts: list[_Part] = []
        row = column = 0
        for layer, (a, b, scaling) in zip(layers, adapters, strict=True):
            rank = 0 if a is None else a.shape[0]
            part = _Part(slice(row, row + layer.out_features), slice(column, column + rank), scaling, a, b)
            unpack(layer, self.weight[part.rows])
            if b is not None:
                torch.mul(b.detach(), scaling, out=self.up[part.rows, part.columns])
            self.parts.append(part)
            row, column = row + layer.out_features, column + rank
        self.bias = _bias(layers, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(T, I) to (T, O)."""
        found = F.linear(x, self.weight, self.bias)
        return found if self.down is None else found.addmm_(x @ self.down.T, self.up.T)

    def backward(self, dy: Tensor, x: Tensor) -> Tensor:
        """Gradient of `x`, (T, I); adds to the gradients of the adapters."""
        dx = dy @ self.weight
        if self.down is None:
            return dx
        d_low = dy @ self.up
        d_downs, d_ups = d_low.T @ x, dy.T @ (x @ self.down.T)
        for part in self.parts:
            if part.a is not None and part.b is not None and part.a.requires_grad:
                _add_gradient(part.a, d_downs[part.columns], 1.0)
                _add_gradient(part.b, d_ups[part.rows, part.columns], part.scaling)
        return dx.addmm_(d_low, self.down)


def unpack(layer: Any, into: Tensor) -> None:
    """The frozen weight of a layer, out of its 4 bits."""
    weight = _base(layer).weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        into.copy_(weight.detach())
        return
    from bitsandbytes.functional import dequantize_4bit

    if state.dtype == into.dtype:
        dequantize_4bit(weight.data, state, out=into)
    else:
        into.copy_(dequantize_4bit(weight.data, state))


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


def _add_gradient(parameter: Tensor, gradient: Tensor, scale: float) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad.add_(gradient, alpha=scale)
