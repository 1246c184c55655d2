"""One layer of a Llama-like decoder over a line of tokens, forward and backward, with nothing kept that is cheap to
compute again.

Kept between the passes: the layer's input and, if the plan says so, the attention's output. The backward pass
computes the norms, queries, keys, values and the MLP's inside again; the MLP goes through in tiles, so its wide
tensors exist for some tokens only. Each weight is unpacked once a pass (`layer_weights.py`).

The model's own modules hold the weights; this computes what their `forward` does (Llama, Qwen2, Qwen3).
Shapes: T tokens, H query heads, K key heads, D numbers a head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stages.engines.attention import attend, attend_backward
from stages.engines.flat_rows import FlatRows
from stages.engines.fused import rms_norm, rms_norm_backward, rms_norm_backward_add, rotated, swiglu, swiglu_backward
from stages.engines.layer_weights import ATTENTION, MLP, Groups, unpacked
from stages.engines.projection import Copies, Projection


@dataclass(frozen=True)
class Line:
    """What all layers of a pass share."""

    pieces: FlatRows
    cos: Tensor
    sin: Tensor
    tile: int


@dataclass
class _Inside:
    """What the attention's backward pass needs of its forward pass."""

    normed: Tensor
    heads: Tensor
    q: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class Prepared:
    """What is ready for a pass: packed weights that lie together, and the adapter in the type that is computed in."""

    groups: Groups = field(default_factory=dict)
    copies: Copies = field(default_factory=dict)


class LayerPass:
    """One layer during one pass."""

    def __init__(self, layer: Any, line: Line, dtype: torch.dtype, prepared: Prepared) -> None:
        self.layer, self.line, self.dtype, self.prepared = layer, line, dtype, prepared
        self.attention, self.mlp = layer.self_attn, layer.mlp
        self.head_dim = self.attention.head_dim

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's output, the attention's output (T, H, D) and its log-sums."""
        qkv, o = self._projections(self.attention, ATTENTION)
        out, lse = self._attended(hidden, qkv)
        middle = o.forward(out.flatten(1)).add_(hidden)
        del qkv, o
        gate_up, down = self._projections(self.mlp, MLP)
        for tile in self._tiles(middle):
            normed = self._norm(self.layer.post_attention_layernorm, tile)
            tile.add_(down.forward(swiglu(gate_up.forward(normed))))
        return middle, out, lse

    def backward(self, d_hidden: Tensor, hidden: Tensor, kept: tuple[Tensor, Tensor] | None) -> Tensor:
        """Gradient of the layer's input; `d_hidden` is overwritten. `kept`: the attention's output and log-sums."""
        qkv, o = self._projections(self.attention, ATTENTION)
        out, lse = kept or self._attended(hidden, qkv)
        middle = o.forward(out.flatten(1)).add_(hidden)
        self._mlp_backward(d_hidden, middle)
        del middle
        d_out = o.backward(d_hidden, out.flatten(1)).reshape(out.shape)
        inside = self._inside(hidden, qkv)
        d_heads = self._attention_backward(d_out, out, lse, inside)
        del d_out, out, lse
        d_normed = qkv.backward(d_heads, inside.normed)
        norm = self.layer.input_layernorm
        return rms_norm_backward_add(d_normed, hidden, norm.weight, norm.variance_epsilon, d_hidden)

    def _attended(self, hidden: Tensor, qkv: Projection) -> tuple[Tensor, Tensor]:
        inside = self._inside(hidden, qkv)
        return attend(inside.q, inside.k, inside.v, self.line.pieces)

    def _mlp_backward(self, d_hidden: Tensor, middle: Tensor) -> None:
        """Turns the gradient of the layer's output into that of the MLP's input, in place."""
        gate_up, down = self._projections(self.mlp, MLP)
        for d_tile, tile in zip(self._tiles(d_hidden), self._tiles(middle), strict=True):
            d_tile.copy_(self._tile_backward(d_tile, tile, gate_up, down))

    def _tile_backward(self, d_tile: Tensor, tile: Tensor, gate_up: Projection, down: Projection) -> Tensor:
        """Of some tokens; what is wide ends with the call, or the next tile's would come on top of it."""
        norm = self.layer.post_attention_layernorm
        normed = self._norm(norm, tile)
        wide = gate_up.forward(normed)
        d_wide = swiglu_backward(down.backward(d_tile, swiglu(wide)), wide)
        del wide
        d_normed = gate_up.backward(d_wide, normed)
        return rms_norm_backward_add(d_normed, tile, norm.weight, norm.variance_epsilon, d_tile)

    def _inside(self, hidden: Tensor, qkv: Projection) -> _Inside:
        normed = self._norm(self.layer.input_layernorm, hidden)
        heads = qkv.forward(normed).unflatten(1, (-1, self.head_dim))
        num_q, num_k = self._num_heads
        q, k, v = heads.split([num_q, num_k, num_k], 1)
        if hasattr(self.attention, "q_norm"):  # Qwen3
            q, k = self._norm(self.attention.q_norm, q), self._norm(self.attention.k_norm, k)
        cos, sin = self.line.cos, self.line.sin
        return _Inside(normed, heads, rotated(q, cos, sin), rotated(k, cos, sin), v)

    def _attention_backward(self, d_out: Tensor, out: Tensor, lse: Tensor, inside: _Inside) -> Tensor:
        """Gradient of what the projection of queries, keys and values gave, (T, (H + 2K) D)."""
        dq, dk, dv = attend_backward(d_out, inside.q, inside.k, inside.v, out, lse, self.line.pieces)
        cos, back = self.line.cos, -self.line.sin
        dq, dk = rotated(dq, cos, back), rotated(dk, cos, back)
        if hasattr(self.attention, "q_norm"):
            num_q, num_k = self._num_heads
            q, k, _ = inside.heads.split([num_q, num_k, num_k], 1)
            q_norm, k_norm = self.attention.q_norm, self.attention.k_norm
            dq = rms_norm_backward(dq, q, q_norm.weight, q_norm.variance_epsilon)
            dk = rms_norm_backward(dk, k, k_norm.weight, k_norm.variance_epsilon)
        return torch.cat([dq, dk, dv], 1).flatten(1)

    @property
    def _num_heads(self) -> tuple[int, int]:
        return self.attention.q_proj.out_features // self.head_dim, self.attention.k_proj.out_features // self.head_dim

    def _projections(self, part: Any, names: Sequence[str]) -> tuple[Projection, Projection]:
        """Of all layers of the attention or the MLP but the last, which read the same input, and of the last."""
        joined, last = unpacked(part, names, self.dtype, self.prepared.groups)
        layers = [getattr(part, name) for name in names]
        copies = self.prepared.copies
        return Projection(layers[:-1], joined, copies), Projection(layers[-1:], last, copies)

    def _norm(self, norm: Any, x: Tensor) -> Tensor:
        return rms_norm(x, norm.weight, norm.variance_epsilon)

    def _tiles(self, x: Tensor) -> Iterator[Tensor]:
        return iter(x.split(self.line.tile))
