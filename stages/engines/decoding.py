"""Decoding: the next token's logits for many rows at once, from a cache of what was read before.

    GrowingCache     transformers' own cache, one position longer each step; any model, any device
    RecordedSteps    a cache of fixed size, and each step replayed as a CUDA graph: without one, a step of a small
                     model is a thousand kernel launches, and the GPU waits for Python

Both read a prompt once for its n responses, and let finished rows go. `decoder_for` chooses.

In `RecordedSteps` the queries of the heads that share a key head are taken as positions of one query, so attention
reads each key once; transformers copies the keys for every head first. A graph is recorded for each size that is met:
rows in halvings of the first number, positions in steps of `LENGTH_STEP`. Recording takes as long as one step without a
graph. The cache is not kept between batches, so training has its memory; the graphs hold its addresses and go with it.

Shapes: P prompts, R rows (prompts × n, fewer later), K key heads, L positions, D head size, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from stages.engines.shared_prompt import has_full_attention, last_logits

LENGTH_STEP = 256
GROUPED_HEADS = "grouped_heads"


class Decoder(Protocol):
    """One batch of prompts and their responses."""

    def read(self, prompt_ids: list[list[int]], n: int, max_new_tokens: int) -> torch.Tensor:
        """Reads the prompts; logits of the first token of each of their n responses, (R, V)."""
        ...

    def step(self, token_R: torch.Tensor) -> torch.Tensor:
        """Logits after one more token in each row, (R, V); valid until the next call."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Goes on with these rows only, in this order."""
        ...


def decoder_for(model: Any, pad_token_id: int) -> Decoder:
    """Recorded steps on CUDA, where the model has plain attention in every layer; else the growing cache.

    Autocast is not recorded: it keeps what it has cast until its block ends, and a graph would read it after that.
    """
    if model.device.type == "cuda" and has_full_attention(model) and not torch.is_autocast_enabled("cuda"):
        return RecordedSteps(model, pad_token_id)
    return GrowingCache(model, pad_token_id)


class GrowingCache:
    """See the module docstring."""

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self.model, self.pad_token_id = model, pad_token_id

    def read(self, prompt_ids: list[list[int]], n: int, max_new_tokens: int) -> torch.Tensor:
        """See `Decoder.read`."""
        ids, mask = _left_padded(prompt_ids, self.pad_token_id, self.model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.width = ids.shape[1]
        self.cache = DynamicCache(config=self.model.config)
        logits = last_logits(self.model, ids, mask, positions, self.cache)
        self.cache.batch_repeat_interleave(n)
        self.mask = F.pad(mask.repeat_interleave(n, 0), (0, max_new_tokens), value=1)
        self.positions = positions[:, -1:].repeat_interleave(n, 0)
        return logits.repeat_interleave(n, 0)

    def step(self, token_R: torch.Tensor) -> torch.Tensor:
        """See `Decoder.step`."""
        self.width += 1
        self.positions = self.positions + 1
        # one query attends to everything that is not padding: the 4-D mask spares building a causal one
        mask = self.mask[:, None, None, : self.width].bool()
        return last_logits(self.model, token_R[:, None], mask, self.positions, self.cache)

    def keep(self, rows: torch.Tensor) -> None:
        """See `Decoder.keep`."""
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]


class RecordedSteps:
    """See the module docstring. Where there is no CUDA it computes the same, unrecorded."""

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self.model, self.pad_token_id = model, pad_token_id
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle() if model.device.type == "cuda" else None

    def read(self, prompt_ids: list[list[int]], n: int, max_new_tokens: int) -> torch.Tensor:
        """See `Decoder.read`."""
        device = self.model.device
        ids, mask = _left_padded(prompt_ids, self.pad_token_id, device)
        positions, prompts = (mask.cumsum(1) - 1).clamp(min=0), DynamicCache(config=self.model.config)
        logits = last_logits(self.model, ids, mask, positions, prompts)
        self.most_rows = self.num_rows = len(prompt_ids) * n
        self.width = ids.shape[1]
        length = _rounded_up(self.width + max_new_tokens)
        self.cache = _FixedCache(prompts, n, length)
        self.mask = torch.zeros((self.num_rows, 1, 1, length), dtype=torch.bool, device=device)
        self.mask[:, 0, 0, : self.width] = mask.repeat_interleave(n, 0).bool()
        self.positions = positions[:, -1:].repeat_interleave(n, 0)
        self.tokens = torch.zeros((self.num_rows, 1), dtype=torch.long, device=device)
        return logits.repeat_interleave(n, 0)

    def step(self, token_R: torch.Tensor) -> torch.Tensor:
        """See `Decoder.step`."""
        self.tokens[: self.num_rows, 0] = token_R
        self.mask[..., self.width] = True
        self.positions += 1
        self.cache.place.fill_(self.width)
        self.width += 1
        size = self._rows_computed(), _rounded_up(self.width)
        return (self._replayed(*size) if self._pool else self._computed(*size))[: self.num_rows]

    def keep(self, rows: torch.Tensor) -> None:
        """See `Decoder.keep`."""
        self.num_rows = len(rows)
        self.cache.keep(rows, self.width)
        for kept in (self.mask, self.positions):
            kept[: len(rows)] = kept[rows]

    def _rows_computed(self) -> int:
        """The least halving of the first number of rows that holds those that are left."""
        rows = self.most_rows
        while (rows + 1) // 2 >= self.num_rows and rows > 1:
            rows = (rows + 1) // 2
        return rows

    def _replayed(self, rows: int, length: int) -> torch.Tensor:
        if (rows, length) not in self._graphs:
            if not self._graphs:
                self._computed(rows, length)  # once without a recording: libraries set themselves up
                torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                logits = self._computed(rows, length)
            self._graphs[rows, length] = graph, logits
        graph, logits = self._graphs[rows, length]
        graph.replay()
        return logits

    def _computed(self, rows: int, length: int) -> torch.Tensor:
        """A step of the first rows over the first positions of the cache; its result lies in what is given."""
        self.cache.view = rows, length
        with _attention(self.model, GROUPED_HEADS):
            mask = self.mask[:rows, :, :, :length]
            return last_logits(self.model, self.tokens[:rows], mask, self.positions[:rows], self.cache)


class _FixedCache:
    """Keys and values of every layer in place, (R, K, L, D) each; what `past_key_values` needs of one."""

    def __init__(self, prompts: DynamicCache, n: int, length: int) -> None:
        self.view = (0, 0)
        """How many rows and positions a step looks at."""
        self.layers = [_in_room(layer.keys, layer.values, n, length) for layer in prompts.layers]
        self.place = torch.zeros(1, dtype=torch.long, device=self.layers[0][0].device)
        """The position that the next step writes to."""

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any) -> Any:
        """Writes one position; gives all of the view."""
        rows, length = self.view
        views = [kept[:rows, :, :length] for kept in self.layers[layer]]
        for kept, new in zip(views, (keys, values), strict=True):
            kept.index_copy_(2, self.place, new)
        return views

    def get_seq_length(self, *_: Any) -> int:
        """Positions in view."""
        return self.view[1]

    def keep(self, rows: torch.Tensor, width: int) -> None:
        """These rows become the first ones."""
        for layer in self.layers:
            for kept in layer:
                kept[: len(rows), :, :width] = kept[rows, :, :width]


def _in_room(keys: torch.Tensor, values: torch.Tensor, n: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A prompt's keys and values for each of its n responses, with room up to `length` positions."""

    def room(kept: torch.Tensor) -> torch.Tensor:
        return F.pad(kept.repeat_interleave(n, 0), (0, 0, 0, length - kept.shape[2]))

    return room(keys), room(values)


def grouped_heads_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention of one query a row: its heads are positions of their key head. Any other query goes to sdpa."""
    rows, heads, positions, size = query.shape
    if positions != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], size)
    scale = options.get("scaling")
    out = F.scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scale)
    return out.reshape(rows, 1, heads, size), None


AttentionInterface.register(GROUPED_HEADS, grouped_heads_attention)


@contextmanager
def _attention(model: Any, name: str) -> Iterator[None]:
    """Another attention for a while; every module of the model reads its name from the one config."""
    config = model.config.get_text_config()
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


def _left_padded(rows: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (P, longest)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _rounded_up(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP
