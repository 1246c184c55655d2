"""The embedding and the head of a frozen decoder, in host memory while a plan wants their place on the GPU.

A pass reads them seldom: of the embedding a row for each token, the head twice, slice by slice of the vocabulary. Of a
small model with a large vocabulary they are a fifth of all weights and more. Whoever samples, evaluates or saves asks
for them before (`Core.rest`). The pinned copy is made once and stays, for they are frozen.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stages.memory_plan import vocab_slice


class OuterWeights:
    """See the module docstring. `model` is the base model; its own parameters point to where the weights are."""

    def __init__(self, model: Any) -> None:
        weights = (model.model.embed_tokens.weight, model.lm_head.weight)
        self._weights = list({id(weight): weight for weight in weights}.values())  # one, where they are tied
        self._device = weights[0].device
        self._hosts: list[Tensor] = []
        self.away_bytes = 0

    def leave(self) -> None:
        """To the host; nothing happens if they are there."""
        if self.away_bytes:
            return
        self._hosts = self._hosts or [_pinned(weight.detach()) for weight in self._weights]
        for weight, host in zip(self._weights, self._hosts, strict=True):
            weight.data = host
        self.away_bytes = sum(host.nbytes for host in self._hosts)

    def come_back(self) -> None:
        """To the GPU; nothing happens if they are there."""
        if self.away_bytes:
            for weight, host in zip(self._weights, self._hosts, strict=True):
                weight.data = host.to(self._device, non_blocking=True)
        self.away_bytes = 0


def _pinned(weight: Tensor) -> Tensor:
    return torch.empty(weight.shape, dtype=weight.dtype, pin_memory=weight.is_cuda).copy_(weight)


def slices(weight: Tensor, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """Rows of `weight` on `device`, some at a time, each with the number of its first; the next is on its way."""
    parts = weight.split(vocab_slice(*weight.shape))
    stream = torch.cuda.Stream(device) if device.type == "cuda" and weight.device != device else None
    ahead = _sent(parts[0], device, stream)
    start = 0
    for number, part in enumerate(parts):
        there, arrived = ahead
        if arrived:
            torch.cuda.current_stream(device).wait_event(arrived)
        if number + 1 < len(parts):
            ahead = _sent(parts[number + 1], device, stream)
        yield start, there
        start += len(part)


def _sent(part: Tensor, device: torch.device, stream: Any) -> tuple[Tensor, Any]:
    """The part on the device, and the event of its arrival."""
    if stream is None:
        return part, None
    there = torch.empty(part.shape, dtype=part.dtype, device=device)
    stream.wait_stream(torch.cuda.current_stream(device))  # its memory was another tensor's
    with torch.cuda.stream(stream):
        there.copy_(part, non_blocking=True)
    return there, stream.record_event()
