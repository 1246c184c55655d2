"""One pass over a decoder's layers with the Python of a single layer: recorded as a CUDA graph, played for the others.

All layers of a decoder compute the same on different weights, and at some thousand tokens the GPU is done with a
layer long before Python has sent its few hundred kernels. So the first layer of a pass runs as it stands, which warms
up what is compiled on first use; then the same function is recorded over a copy of that layer; for every other layer
its weights are copied into that copy (packed as they are, some 1 % of the layer's time) and the graph is played.

Recording costs as much Python as one layer, so a pass of other lengths simply records again and nothing is padded.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


class Repeated:
    """`run(layer, *tensors)` for one layer after the other, with tensors of the same shapes.

    `is_backward`: it adds to the gradients of the layer's weights.
    """

    def __init__(self, run: Callable[..., Tensors], is_backward: bool) -> None:
        self._run, self._is_backward = run, is_backward
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, layer: Any, *tensors: Tensor) -> Tensors:
        if self._graph is None:
            found = self._run(layer, *tensors)
            self._record(layer, tensors)
            return found
        _copy(self._inputs, list(tensors))
        _copy(self._weights, weights_of(layer))
        self._graph.replay()
        if self._is_backward:
            _add_gradients(layer, self._gradients)
        return tuple(tensor.clone() for tensor in self._outputs)

    def _record(self, layer: Any, tensors: Tensors) -> None:
        """Nothing is computed here; the recorded layer's own gradients begin at zero each time."""
        copied = copy.deepcopy(layer)
        self._weights, self._inputs = weights_of(copied), [torch.empty_like(tensor) for tensor in tensors]
        trained = _trained(copied) if self._is_backward else []
        self._gradients = [torch.empty_like(weight) for weight in trained]
        for weight, gradient in zip(trained, self._gradients, strict=True):
            weight.grad = gradient
        pool, stream, _ = _place()
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        # Not `torch.cuda.graph`, which gives all cached memory back first, pinned memory too.
        with torch.cuda.stream(stream):
            graph.capture_begin(pool.id, capture_error_mode="thread_local")
            try:
                if self._is_backward:
                    torch._foreach_zero_(self._gradients)
                self._outputs = self._run(copied, *self._inputs)
            finally:
                graph.capture_end()
        self._graph = graph


@cache
def _place() -> tuple[Any, Any, Any]:
    """Memory and stream of all recordings, so that each uses the memory of the one before.

    An empty recording comes with them: pinned memory refuses a pool whose last recording is gone.
    """
    pool: Any = torch.cuda.MemPool()
    stream, first = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        first.capture_begin(pool.id, capture_error_mode="thread_local")
        torch.zeros(1, device="cuda")
        first.capture_end()
    return pool, stream, first


def weights_of(layer: Any) -> list[Tensor]:
    """All tensors that differ from layer to layer, in order: parameters, and the scales of 4-bit weights."""
    found = [weight.data for weight in layer.parameters()]
    for weight in layer.parameters():
        state = getattr(weight, "quant_state", None)
        if state is not None:
            found += [state.absmax, *([state.offset, state.state2.absmax] if state.nested else [])]
    return found


def _trained(layer: Any) -> list[Tensor]:
    return [weight for weight in layer.parameters() if weight.requires_grad]


def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    """One kernel for all tensors of a type."""
    for dtype in {tensor.dtype for tensor in to}:
        pairs = [(a, b) for a, b in zip(to, source, strict=True) if a.dtype == dtype]
        torch._foreach_copy_([a for a, _ in pairs], [b for _, b in pairs])


def _add_gradients(layer: Any, gradients: list[Tensor]) -> None:
    weights = _trained(layer)
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    torch._foreach_add_([weight.grad for weight in weights if weight.grad is not None], gradients)
