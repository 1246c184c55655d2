"""The model in training as a plain one to sample from: its adapter added to its weights, 4-bit weights unpacked.

Of each token that is sampled, an adapter costs two more products in every linear layer, and a 4-bit weight three
kernels to unpack it. The copy shares with the model in training all that has no adapter (embedding, norms, head), and
holds the sum of each linear layer and its adapter, made anew after each update; on a GPU only while it is sampled from.
On a CPU it is the same model in fp32. In bf16 a sum is rounded, so it is another engine as vLLM is, and held to the
same correction.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from stages.engines.layer_weights import base_of, unpack
from stages.engines.projection import adapter_of, is_plain
from stages.engines.token_budget import machine_bytes
from stages.memory_plan import CONTEXT_BYTES


class PlainCopy:
    """See the module docstring. `model` of the copy is what to sample from, between `fill` and `drop`."""

    def __init__(self, trained: Any) -> None:
        self._pairs: list[tuple[Any, nn.Linear]] = []
        self.model = self._plain(trained.get_base_model())
        self._sizes = [_shape_and_type(layer) for layer, _ in self._pairs]

    @property
    def num_missing_bytes(self) -> int:
        """What `fill` will take."""
        missing = [size for (_, linear), size in zip(self._pairs, self._sizes, strict=True) if linear.weight.is_meta]
        return sum(shape.numel() * dtype.itemsize for shape, dtype in missing)

    @torch.no_grad()
    def fill(self) -> None:
        """Takes the weights as they are now."""
        for (layer, linear), (shape, dtype) in zip(self._pairs, self._sizes, strict=True):
            if linear.weight.is_meta:
                there = torch.empty(shape, dtype=dtype, device=base_of(layer).weight.device)
                linear.weight = nn.Parameter(there, requires_grad=False)
            unpack(base_of(layer), linear.weight)
            if adapter := adapter_of(layer):
                a, b, scaling = adapter
                total = linear.weight.float()  # itself, in fp32
                linear.weight.copy_(total.addmm_(b.float(), a.float(), alpha=scaling))

    def drop(self) -> None:
        """Gives the memory back."""
        for _, linear in self._pairs:
            linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)

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
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    free = torch.cuda.mem_get_info(device)[0] + reserved - allocated
    told = memory_gb * 1e9 - CONTEXT_BYTES - allocated if memory_gb else free
    return num_bytes <= min(free, told) / 2


def _adapted(module: Any) -> Iterator[Any]:
    return (layer for layer in module.modules() if hasattr(layer, "lora_A"))


def _shape_and_type(layer: Any) -> tuple[torch.Size, torch.dtype]:
    base = base_of(layer)
    state = getattr(base.weight, "quant_state", None)
    shape = torch.Size((base.out_features, base.in_features))
    return shape, state.dtype if state else base.weight.dtype
