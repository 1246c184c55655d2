"""Where the inputs of layers wait between the forward and the backward pass: on the GPU, or in pinned host memory.

To the host they travel on a stream of their own while the next layer computes, and come back one layer ahead of the
backward pass. A layer of 1,000 tokens computes about as long as three such copies take, so this costs next to no time;
on a CPU, and where the plan says so, the tensors simply stay where they are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Kept:
    """Tensors of each layer, in order; taken back from the last to the first."""

    def __init__(self, on_host: bool, device: torch.device) -> None:
        self._stream: Any = torch.cuda.Stream(device) if on_host and device.type == "cuda" else None
        self._device = device
        self._stack: list[Sequence[Tensor]] = []
        self._leaving: Any = None
        self._ahead: tuple[list[Tensor], Any] | None = None

    def put(self, *tensors: Tensor) -> None:
        """Keeps a layer's tensors; the caller may drop them."""
        if self._stream is None:
            self._stack.append(tensors)
            return
        main = torch.cuda.current_stream(self._device)
        if self._leaving is not None:  # the copies before these have arrived, so their tensors may be used again
            main.wait_event(self._leaving[1])
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            hosts = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for host, tensor in zip(hosts, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
        self._leaving = tensors, self._stream.record_event()
        self._stack.append(hosts)

    def take(self) -> Sequence[Tensor]:
        """The tensors of the last layer that was put; those before it are sent for."""
        if self._stream is None:
            return self._stack.pop()
        found, arrived = self._ahead or self._sent_for()
        self._leaving = None
        torch.cuda.current_stream(self._device).wait_event(arrived)
        self._ahead = self._sent_for() if self._stack else None
        return found

    def _sent_for(self) -> tuple[list[Tensor], Any]:
        hosts = self._stack.pop()
        found = [torch.empty(host.shape, dtype=host.dtype, device=self._device) for host in hosts]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # their memory was another tensor's
        with torch.cuda.stream(self._stream):
            for tensor, host in zip(found, hosts, strict=True):
                tensor.copy_(host, non_blocking=True)
        return found, self._stream.record_event()
