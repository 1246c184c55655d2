"""The frozen weights of a decoder layer as matrices to compute with: those of the attention in one go, those of the MLP
in another.

bitsandbytes unpacks a 4-bit weight with three kernels: its scales, which are packed in 8 bits, their offset, and the
weight itself. A layer has seven weights, and what a step of the core waits for is Python sending kernels. `gathered`
lays the packed weights of a group end to end, each module keeping a view of its own, and two kernels unpack them all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.engines.fused import restored_scales

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
"""In each, all but the last read the same input."""
BLOCK, SCALES_BLOCK = 64, 256
"""Weights with one scale, and scales with one size and offset, as bitsandbytes packs nf4."""


@dataclass(frozen=True)
class Packed:
    """4-bit weights of several layers, end to end; a scale for 64 of them, a size and an offset for 256 scales."""

    weights: Tensor
    scales: Tensor
    sizes: Tensor
    offsets: Tensor
    code: Tensor

    def unpack(self, into: Tensor) -> None:
        """All of them, into a flat tensor."""
        from bitsandbytes.functional import QuantState

        absmax = restored_scales(self.scales.view(len(self.sizes), -1), self.sizes, self.offsets, self.code).view(-1)
        blocks = into.view(-1, BLOCK)
        state = QuantState(absmax, shape=blocks.shape, dtype=into.dtype, blocksize=BLOCK, quant_type="nf4")
        _dequantize(self.weights, state, blocks)


Groups = dict[int, Packed]
"""By the id of the module that holds the layers."""


def gathered(decoder: Any) -> Groups:
    """The groups of a decoder's layers whose weights are packed as above; the others are unpacked one by one."""
    parts = [(part, names) for layer in decoder.layers for part, names in _groups(layer)]
    found = {id(part): _gather([base_of(getattr(part, name)) for name in names]) for part, names in parts}
    return {name: group for name, group in found.items() if group}


def _groups(layer: Any) -> list[tuple[Any, tuple[str, ...]]]:
    return [(layer.self_attn, ATTENTION), (layer.mlp, MLP)]


def stacks(decoder: Any) -> Iterator[list[Any]]:
    """The layers that read the same input, together, in the order of the model."""
    for layer in decoder.layers:
        for part, names in _groups(layer):
            yield from ([getattr(part, name) for name in stack] for stack in (names[:-1], names[-1:]))


def _gather(layers: list[Any]) -> Packed | None:
    states: list[Any] = [getattr(layer.weight, "quant_state", None) for layer in layers]
    if not all(_is_common(state) for state in states):
        return None
    inner = [state.state2 for state in states]
    if not all(torch.equal(one.code, inner[0].code) for one in inner):
        return None
    group = Packed(
        torch.cat([layer.weight.data for layer in layers]),
        torch.cat([state.absmax for state in states]),
        torch.cat([one.absmax for one in inner]),
        torch.cat([state.offset.float().expand(len(state.state2.absmax)) for state in states]),
        inner[0].code,
    )
    weights = group.weights.split([len(layer.weight.data) for layer in layers])
    scales = group.scales.split([len(state.absmax) for state in states])
    for layer, state, weight, scale in zip(layers, states, weights, scales, strict=True):
        layer.weight.data, state.absmax = weight, scale
    return group


def _is_common(state: Any) -> bool:
    """nf4 in blocks of 64 with scales in blocks of 256, and no block that is cut off."""
    return bool(
        state is not None
        and state.nested
        and (state.quant_type, state.blocksize, state.state2.blocksize) == ("nf4", BLOCK, SCALES_BLOCK)
        and state.absmax.numel() == SCALES_BLOCK * state.state2.absmax.numel()
    )


def unpacked(part: Any, names: Sequence[str], dtype: torch.dtype, groups: Groups) -> tuple[Tensor, Tensor]:
    """Of a layer's attention or MLP: one matrix of all that read the same input, and that of the last."""
    layers = [base_of(getattr(part, name)) for name in names]
    sizes = [layer.out_features * layer.in_features for layer in layers]
    flat = torch.empty(sum(sizes), dtype=dtype, device=layers[0].weight.device)
    if group := groups.get(id(part)):
        group.unpack(flat)
    else:
        for layer, place in zip(layers, flat.split(sizes), strict=True):
            unpack(layer, place.view(layer.out_features, layer.in_features))
    joined, last = flat.split([sum(sizes[:-1]), sizes[-1]])
    return joined.view(-1, layers[0].in_features), last.view(-1, layers[-1].in_features)


def base_of(layer: Any) -> Any:
    """The frozen layer under an adapter."""
    return layer.get_base_layer() if hasattr(layer, "lora_A") else layer


def unpack(layer: Any, into: Tensor) -> None:
    """The frozen weight of one layer, out of its 4 bits."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        into.copy_(layer.weight.detach())
    else:
        _dequantize(layer.weight.data, state, into)


class PackedWeights:
    """The 4-bit weights of `layers` with their scales, on the host while their place on the GPU is wanted.

    Their memory is freed under them, so that every view of it holds again when it is back. What a layer outside
    `layers` needs stays, if it is part of `sharing`. The pinned copies are made once, for the weights are frozen.
    """

    def __init__(self, layers: list[Any], sharing: Any) -> None:
        needed = {storage._cdata for layer in sharing.modules() for storage in _storages(layer)}
        found = {storage._cdata: storage for layer in layers for storage in _storages(layer)}
        self._places = [(storage, _on_host(storage)) for name, storage in found.items() if name not in needed]
        self.num_bytes = sum(host.nbytes() for _, host in self._places)

    def keep_only(self, layer: Any | None = None) -> None:
        """Those of one layer come or stay; all others leave."""
        wanted = {storage._cdata for storage in _storages(base_of(layer))} if layer is not None else set()
        for storage, host in self._places:
            if storage._cdata in wanted:
                _bring(storage, host)
            elif storage.nbytes():
                storage.resize_(0)

    def come_back(self) -> None:
        """All of them; nothing happens to those that are there."""
        for storage, host in self._places:
            _bring(storage, host)


def _storages(layer: Any) -> list[Any]:
    """The memory of a layer's packed weight and of its scales; none where it is not packed."""
    weight: Any = getattr(layer, "weight", None)
    state = getattr(weight, "quant_state", None)
    return [] if state is None else [weight.data.untyped_storage(), state.absmax.untyped_storage()]


def _bring(storage: Any, host: Any) -> None:
    if not storage.nbytes():
        storage.resize_(host.nbytes())
        storage.copy_(host, non_blocking=True)


def _on_host(storage: Any) -> Any:
    is_cuda = storage.device.type == "cuda"
    place = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=is_cuda).untyped_storage()
    return place.copy_(storage, non_blocking=False)


def _dequantize(weights: Tensor, state: Any, into: Tensor) -> None:
    from bitsandbytes.functional import dequantize_4bit

    if into.is_cuda and state.dtype == into.dtype:
        dequantize_4bit(weights, state, out=into)
    else:
        into.copy_(dequantize_4bit(weights, state))
