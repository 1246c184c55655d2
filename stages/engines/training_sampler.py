"""Sampling from the model in training without vLLM, by a plain copy (`plain_copy.py`), in what memory there is."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from stages.engines.plain_copy import PlainCopy, can_be_plain, free_bytes, has_room
from stages.engines.samplers import Completion, Sampling, TransformersSampler
from stages.engines.token_budget import lowered
from stages.memory_plan import CONTEXT_BYTES, Shape, sampling_bytes

# Packed weights leave for a copy to sample from where so many tokens can then be cached.
_LEAST_TOKENS = 2**13
# Of what is free on a GPU, for keys and values; the rest is for what a recorded step needs.
_CACHE_SHARE = 0.8


class TrainingSampler(TransformersSampler):
    """Samples from a model in training, by a plain copy of it where it can have one and there is room.

    `memory_gb`: what the process may take of the GPU; beyond it torch's allocator gives back what it only keeps, or
    is out of memory.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, memory_gb: float | None = None) -> None:
        super().__init__(model, tokenizer)
        self.memory_gb, self._most_tokens = memory_gb, self.token_budget
        self._take(model)
        # In bf16 the copy is rounded where the model in training is not.
        self.trained_elsewhere = self._copy is not None and model.dtype != torch.float32
        if memory_gb and self._on_gpu:
            _limit(model.device, memory_gb)

    def sync(self, model: Any, step: int) -> None:
        """Samples from the weights as they are now."""
        if model is not self._trained:
            self._take(model)
        self.sleep()
        if self._copy and has_room(self._copy.num_missing_bytes, model.device, self.memory_gb):
            self._copy.fill()
            self.model = self._copy.model
        elif self._copy and self._on_gpu and self._has_room_without_packed(self._copy):
            self._copy.fill(packed_leave=True)
            self.model = self._copy.model

    def generate(self, prompts: Sequence[str], n: int, sampling: Sampling) -> list[list[Completion]]:
        """See `Sampler.generate`; where a GPU is short of memory in batches whose keys and values have room."""
        if self._on_gpu and (self.memory_gb or self.model is not self._trained):
            tokens = self._free_bytes() * _CACHE_SHARE / self._bytes_per_token(sampling.max_new_tokens)
            self.token_budget = min(self._most_tokens, lowered(int(tokens)))
        return super().generate(prompts, n, sampling)

    def sleep(self) -> None:
        """A GPU's memory is wanted for training; on a CPU the copy stays where it is."""
        if self._copy and self._on_gpu:
            self._copy.drop()
            self.model = self._trained

    def _take(self, model: Any) -> None:
        self.model = self._trained = model
        self._copy = PlainCopy(model) if can_be_plain(model) else None

    def _has_room_without_packed(self, copy: PlainCopy) -> bool:
        needed = copy.num_missing_bytes + _LEAST_TOKENS * self._bytes_per_token(_LEAST_TOKENS)
        packed = copy.num_packed_bytes
        return packed > 0 and needed <= self._free_bytes() + packed

    def _bytes_per_token(self, new_tokens: int) -> float:
        return sampling_bytes(Shape.of(self._trained.config.get_text_config().to_dict()), new_tokens)

    def _free_bytes(self) -> int:
        return free_bytes(self._trained.device, self.memory_gb)

    @property
    def _on_gpu(self) -> bool:
        return bool(self._trained.device.type == "cuda")


def _limit(device: torch.device, memory_gb: float) -> None:
    total = torch.cuda.mem_get_info(device)[1]
    share = (memory_gb * 1e9 - CONTEXT_BYTES) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, share)), device)
