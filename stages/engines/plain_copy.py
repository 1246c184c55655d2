"""The model in training as a plain one to sample from: its adapter added to its weights, 4-bit weights unpacked.

Of each token that is sampled, an adapter costs two more products in every linear layer, and a 4-bit weight three
kernels to unpack it. The copy shares with the model in training all that has no adapter (embedding, norms, head), and
holds the sum of each linear layer and its adapter, made anew after each update; on a GPU only while it is sampled from.
On a CPU it is the same model in fp32. In bf16 a sum is rounded, so it is another engine as vLLM is, and held to the
same correction.

Where a GPU has no room for both, the packed weights wait on the host while the copy is there (`PackedWeights`).
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from stages.engines.layer_weights import PackedWeights, base_of, unpack
from stages.engines.projection import adapter_of, is_plain
from stages.engines.token_budget import machine_bytes
from stages.memory_plan import CONTEXT_BYTES


class PlainCopy:
    """See the module docstring. `model` of the copy is what to sample from, between `fill` and `drop`."""

    def __init__(self, trained: Any) -> None:
        self._pairs: list[tuple[Any, nn.Linear]] = []
        self.model = self._plain(trained.get_base_model())
        self._sizes = [_shape_and_type(layer) for layer, _ in self._pairs]
        self._packed: PackedWeights | None = None

    @property
    def num_missing_bytes(self) -> int:
        """What `fill` will take."""
        return sum(self._missing_bytes())

    @property
    def num_packed_bytes(self) -> int:
        """What `fill` gives back where packed weights leave."""
        return self._packed_weights().num_bytes

    @torch.no_grad()
    def fill(self, packed_leave: bool = False) -> None:
        """Takes the weights as they are now. `packed_leave`: those in 4 bits are not on the GPU until `drop`, and while
        the copy is filled only those of one layer.
        """
        packed = self._packed_weights() if packed_leave else None
        if packed:
            packed.keep_only()
        self._take_room()
        for layer, linear in self._pairs:
            if packed:
                packed.keep_only(layer)
            unpack(base_of(layer), linear.weight)
            if adapter := adapter_of(layer):
                a, b, scaling = adapter
                total = linear.weight.float()  # itself, in fp32
                linear.weight.copy_(total.addmm_(b.float(), a.float(), alpha=scaling))
        if packed:
            packed.keep_only()

    def drop(self) -> None:
        """Gives the memory back; packed weights are there again."""
        for _, linear in self._pairs:
            linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)
        _give_back(self.model.device)
        if self._packed:
            self._packed.come_back()

    def _packed_weights(self) -> PackedWeights:
        """Made when it is first asked for: the core lays packed weights together before."""
        self._packed = self._packed or PackedWeights([base_of(layer) for layer, _ in self._pairs], self.model)
        return self._packed

    def _missing_bytes(self) -> list[int]:
        """Of each layer; 0 where its weight is there."""
        return [
            shape.numel() * dtype.itemsize if linear.weight.is_meta else 0
            for (_, linear), (shape, dtype) in zip(self._pairs, self._sizes, strict=True)
        ]

    def _take_room(self) -> None:
        """For all weights in one piece: in many, a part of each would be lost to the sizes of an allocator's blocks."""
        device = self.model.device
        _give_back(device)
        sizes = self._missing_bytes()
        room = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        for (_, linear), (shape, dtype), part in zip(self._pairs, self._sizes, room.split(sizes), strict=True):
            if linear.weight.is_meta:
                linear.weight = nn.Parameter(part.view(dtype).view(shape), requires_grad=False)

    def _plain(self, module: Any) -> Any:
        """The module without adapters; what has none below it is shared but for whether it trains."""
        if hasattr(module, "lora_A"):
            base = base_of(module)
            linear = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
            linear.bias = base.bias
            self._pairs.append((module, linear))
            return linear
        plain = copy.copy(module)
        vars(plain).pop("forward", None)  # TRL puts one into the model itself, which would go on to compute the model
        plain._modules = {
            name: child if child is None else self._plain(child) for name, child in module._modules.items()
        }
        return plain


def can_be_plain(model: Any) -> bool:
    """Whether all that was added to the model is a LoRA without dropout on some linear layers."""
    if not hasattr(model, "peft_config"):
        return False
    return all(is_plain(layer) and base_of(layer).weight.dim() == 2 for layer in _adapted(model.get_base_model()))


def has_room(num_bytes: int, device: torch.device, memory_gb: float | None) -> bool:
    """Whether so much is at most half of a GPU's free memory, for the rest is wanted for keys and values; or a quarter
    of the machine's, whatever else it does, for a resumed run must sample as the run before it did.
    """
    if device.type != "cuda":
        return num_bytes <= machine_bytes() / 4
    return num_bytes <= free_bytes(device, memory_gb) / 2


def free_bytes(device: torch.device, memory_gb: float | None) -> int:
    """What this process may still take of the GPU: what is free, or what is left of what it was told."""
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    free = torch.cuda.mem_get_info(device)[0] + reserved - allocated
    told = int(memory_gb * 1e9) - CONTEXT_BYTES - allocated if memory_gb else free
    return max(0, min(free, told))


def _give_back(device: torch.device) -> None:
    """What is kept of memory that nothing is in: pieces of it would lie between weights that come and go."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _adapted(module: Any) -> Iterator[Any]:
    return (layer for layer in module.modules() if hasattr(layer, "lora_A"))


def _shape_and_type(layer: Any) -> tuple[torch.Size, torch.dtype]:
    base = base_of(layer)
    state = getattr(base.weight, "quant_state", None)
    shape = torch.Size((base.out_features, base.in_features))
    return shape, state.dtype if state else base.weight.dtype
