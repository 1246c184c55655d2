"""Causal attention of one long row by cuDNN, forward and backward: on Hopper GPUs it is faster than torch's.

A step of 8B with rows of 20,480 tokens took 18.4 s on an H200 instead of 22.3 (docs/performance.md); a row in a layer
takes 6.2 ms forward and 17.3 backward. cuDNN makes a plan for each new length, which takes up to some tenths of a
second (by its users' reports, not measured here), so it is asked for rows whose attention is worth that, and
`padded_length` leaves few different lengths.

Shapes: T tokens, H query heads, K key heads, D numbers a head.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

aten = torch.ops.aten
# Rows this long, in steps of so many tokens: padding costs at most a sixteenth of a row.
LEAST_TOKENS, STEP = 8192, 512
# Tokens of the row that cuDNN is tried on; bf16 attention computed twice differs by less, of the largest number.
_TRIED, _ALIKE = 256, 0.03


def padded_length(num_tokens: int) -> int:
    """Of a row alone in its line. What comes behind a causal row changes nothing of it."""
    return num_tokens if num_tokens < LEAST_TOKENS else -(-num_tokens // STEP) * STEP


def helps(q: Tensor, k: Tensor) -> bool:
    """Whether cuDNN is to be asked: the row is long, it may add up in any order, and cuDNN computes as it should."""
    if len(q) < LEAST_TOKENS or torch.are_deterministic_algorithms_enabled() or not q.is_cuda:
        return False
    return _computes(q.shape[1], k.shape[1], q.shape[2], q.dtype, q.device)


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output (T, H, D) and the log of each softmax's sum (H, T)."""
    out, lse, *_ = _forward(*map(_batched, (q, k, v)))
    return _line(out), lse.reshape(q.shape[1], q.shape[0])


def attend_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    d_out, q, k, v, out = map(_batched, (d_out.contiguous(), q, k, v, out.contiguous()))  # cuDNN wants equal strides
    dq, dk, dv = _backward(d_out, q, k, v, out, lse[None, :, :, None])
    return _line(dq), _line(dk), _line(dv)


def _batched(x: Tensor) -> Tensor:
    """(T, H, D) as (1, H, T, D), without a copy."""
    return x.transpose(0, 1)[None]


def _line(x: Tensor) -> Tensor:
    return x[0].transpose(0, 1)


def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return tuple(aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True, False, scale=_scale(q)))


def _backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, ...]:
    seed = torch.zeros((), dtype=torch.long, device=q.device)  # of a dropout that there is not
    ends, longest = (None, None), (q.shape[2], k.shape[2])
    given = (d_out, q, k, v, out, lse, seed, seed, None, *ends, *longest, 0.0, True)
    return tuple(aten._scaled_dot_product_cudnn_attention_backward(*given, scale=_scale(q)))


def _scale(q: Tensor) -> float:
    return float(q.shape[-1] ** -0.5)


@cache
def _computes(heads: int, kv_heads: int, size: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this GPU is one where cuDNN is faster, and it gives what attention is; tried on a short row."""
    if torch.cuda.get_device_capability(device)[0] < 9:
        return False
    generator = torch.Generator(device).manual_seed(0)
    numbers = [heads, heads, kv_heads, heads + 2 * kv_heads]
    d_out, q, k, together = (
        torch.randn(_TRIED, n, size, generator=generator, device=device).to(dtype) for n in numbers
    )
    v = together[:, -kv_heads:]  # as it is in a layer: a part of what the projection gave
    try:
        out, lse = attend(q, k, v)
        found = (out, *attend_backward(d_out, q, k, v, out, lse))
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, RuntimeError):  # another torch, no cuDNN, or no kernel for such heads
        return False
    return all(map(_are_alike, found, _in_fp32(d_out, q, k, v)))


def _in_fp32(d_out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients by autograd."""
    with torch.enable_grad():
        q, k, v = leaves = [_batched(x.float()).requires_grad_() for x in inputs]
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        grads = torch.autograd.grad(out, leaves, _batched(d_out.float()))
    return tuple(map(_line, (out.detach(), *grads)))


def _are_alike(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() < _ALIKE * expected.abs().max())
