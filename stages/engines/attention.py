"""Causal attention over a line of pieces with shared prefixes, forward and backward, with the backward's inputs ours.

torch's flash kernels take sequences of different lengths end to end; a piece's keys are those of its prefix and its
own, causal from the lower right. They are called directly and not through autograd, because a layer recomputes its
queries and keys but keeps the output. A long row that is alone goes another way (`long_attention.py`). Where the
kernels cannot run (a CPU, fp32) the same is written out.

Shapes: T tokens, H query heads, K key heads, D numbers a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from stages.engines import long_attention
from stages.engines.flat_rows import FlatRows, Piece

Heads = tuple[Tensor, Tensor, Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, line: FlatRows) -> tuple[Tensor, Tensor]:
    """Output (T, H, D) and the log of each softmax's sum (H, T), which the backward pass needs."""
    if not _has_kernel(q):
        return _attend_written_out(q, k, v, line)
    if line.is_one_row and long_attention.helps(q, k):
        return long_attention.attend(q, k, v)
    k, v = _gathered(k, line), _gathered(v, line)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *line.offsets(q.device), *line.longest, 0.0, True, False, scale=q.shape[-1] ** -0.5
    )
    return out, lse


def attend_backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, line: FlatRows) -> Heads:
    """Gradients of queries, keys and values."""
    if not _has_kernel(q):
        return _backward_written_out(d_out, q, k, v, out, lse, line)
    if line.is_one_row and long_attention.helps(q, k):
        return long_attention.attend_backward(d_out, q, k, v, out, lse)
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
    gathered = _gathered(k, line), _gathered(v, line)
    with _strict():
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            *(d_out, q, *gathered, out, lse, *line.offsets(q.device), *line.longest, 0.0, True, *no_dropout),
            scale=q.shape[-1] ** -0.5,
        )
    return dq, _scattered(dk, line, len(q)), _scattered(dv, line, len(q))


@contextmanager
def _strict() -> Iterator[None]:
    """Where an order was asked for: the flash kernel keeps one only if torch may not merely warn."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


def _has_kernel(q: Tensor) -> bool:
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16)


def _gathered(keys: Tensor, line: FlatRows) -> Tensor:
    places = line.key_places(keys.device)
    return keys if places is None else keys[places]


def _scattered(grads: Tensor, line: FlatRows, num_tokens: int) -> Tensor:
    """Adds up what each piece says of its keys; in fp32, for a prompt hears from all its completions."""
    places = line.key_places(grads.device)
    if places is None:
        return grads
    total = torch.zeros(num_tokens, *grads.shape[1:], device=grads.device)
    return total.index_add_(0, places, grads.float()).to(grads.dtype)


# --- written out -------------------------------------------------------------------------------------


def _attend_written_out(q: Tensor, k: Tensor, v: Tensor, line: FlatRows) -> tuple[Tensor, Tensor]:
    out, lse = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0], device=q.device)
    group = q.shape[1] // k.shape[1]
    for piece in line.pieces:
        here, keys = _places(piece, q.device)
        scores = _scores(q[here], k[keys].repeat_interleave(group, 1), piece)
        lse[:, here] = scores.logsumexp(-1)
        weights = (scores - lse[:, here, None]).exp().to(q.dtype)
        out[here] = torch.einsum("hts,shd->thd", weights, v[keys].repeat_interleave(group, 1))
    return out, lse


def _backward_written_out(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, line: FlatRows
) -> Heads:
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    group, scale = q.shape[1] // k.shape[1], q.shape[-1] ** -0.5
    for piece in line.pieces:
        here, places = _places(piece, q.device)
        keys, values = k[places].repeat_interleave(group, 1), v[places].repeat_interleave(group, 1)
        weights = (_scores(q[here], keys, piece) - lse[:, here, None]).exp()
        d_weights = torch.einsum("thd,shd->hts", d_out[here], values)
        d_scores = weights * (d_weights - (d_out[here] * out[here]).sum(-1).T[..., None]) * scale
        dq[here] = torch.einsum("hts,shd->thd", d_scores, keys)
        d_keys = torch.einsum("hts,thd->shd", d_scores, q[here])
        d_values = torch.einsum("hts,thd->shd", weights, d_out[here])
        dk.index_add_(0, places, d_keys.unflatten(1, (-1, group)).sum(2))
        dv.index_add_(0, places, d_values.unflatten(1, (-1, group)).sum(2))
    return dq, dk, dv


def _places(piece: Piece, device: torch.device) -> tuple[slice, Tensor]:
    own = torch.arange(piece.start, piece.start + piece.length, device=device)
    before = torch.arange(piece.prefix_start, piece.prefix_start + piece.prefix_length, device=device)
    return slice(piece.start, piece.start + piece.length), torch.cat([before, own])


def _scores(q: Tensor, k: Tensor, piece: Piece) -> Tensor:
    scores = torch.einsum("thd,shd->hts", q, k).float() * q.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(piece.prefix_length + 1)
    return scores.masked_fill(hidden, -torch.inf)
