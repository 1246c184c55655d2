"""The elementwise parts of a decoder layer and of the head, forward and backward, as plain functions.

On CUDA each is compiled by torch into one kernel (`torch.compile`), so nothing of what they compute in fp32 goes
through memory; on a CPU they run as they stand here, and that is what the tests compare with autograd.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel on CUDA, the function itself elsewhere."""
    lengths: set[int] = set()

    @wraps(function)
    def run(x: Tensor, *others: Any) -> Any:
        if not x.is_cuda:
            return function(x, *others)
        if len(x) not in lengths:  # tokens come in every number; without this each would be compiled for
            lengths.add(len(x))
            for tensor in (x, *others):
                if isinstance(tensor, Tensor) and len(tensor) == len(x):
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return _compiled(function)(x, *others)

    return run


@fused
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Llama's: normalised in fp32, scaled in the input's type."""
    numbers = x.float()
    scaled = numbers * torch.rsqrt(numbers.square().mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


@fused
def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Gradient of the norm's input."""
    numbers = x.float()
    rstd = torch.rsqrt(numbers.square().mean(-1, keepdim=True) + eps)
    scaled, grad = numbers * rstd, dy.float() * weight.float()
    return (rstd * (grad - scaled * (grad * scaled).mean(-1, keepdim=True))).to(x.dtype)


@fused
def rms_norm_backward_add(dy: Tensor, x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> Tensor:
    """The same, plus the gradient that went round the norm."""
    numbers = x.float()
    rstd = torch.rsqrt(numbers.square().mean(-1, keepdim=True) + eps)
    scaled, grad = numbers * rstd, dy.float() * weight.float()
    back = rstd * (grad - scaled * (grad * scaled).mean(-1, keepdim=True))
    return (residual.float() + back).to(x.dtype)


@fused
def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) × up, of (T, 2F)."""
    gate, up = gate_up.chunk(2, -1)
    numbers = gate.float()
    return (numbers * torch.sigmoid(numbers)).to(up.dtype) * up


@fused
def swiglu_backward(dy: Tensor, gate_up: Tensor) -> Tensor:
    """Gradient of (T, 2F)."""
    gate, up = gate_up.chunk(2, -1)
    numbers, back = gate.float(), dy.float()
    share = torch.sigmoid(numbers)
    d_gate = back * up.float() * share * (1 + numbers * (1 - share))
    return torch.cat([d_gate, back * numbers * share], -1).to(gate_up.dtype)


@fused
def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (T, heads, D); `cos` and `sin` are (T, D). With -sin it is turned back."""
    left, right = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]


@fused
def token_terms(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of (n, V) fp32 logits: log-probability of each target, entropy, and whether the target is the likeliest."""
    lse = logits.logsumexp(-1)
    at_target = logits.gather(-1, targets[:, None]).squeeze(-1)
    probabilities = (logits - lse[:, None]).exp()
    entropy = lse - (probabilities * logits).sum(-1)
    return at_target - lse, entropy, at_target >= logits.amax(-1)


@fused
def probabilities(logits: Tensor, at_target: Tensor, logps: Tensor, dtype: torch.dtype) -> Tensor:
    """softmax of (n, V) logits where the target's logit and log-probability are known."""
    return (logits - (at_target - logps)[:, None]).exp().to(dtype)


@fused
def restored_scales(scales: Tensor, sizes: Tensor, offsets: Tensor, code: Tensor) -> Tensor:
    """Of 4-bit weights, out of 8 bits: (n, 256) places in `code`, with a size and an offset for each row."""
    return code[scales.int()] * sizes[:, None] + offsets[:, None]


@fused
def shares(logits: Tensor, lse: Tensor, dtype: torch.dtype) -> Tensor:
    """softmax of (n, S) logits whose log-sums over the whole vocabulary are known."""
    return (logits - lse[:, None]).exp().to(dtype)


@fused
def joined_sums(
    logits: Tensor, targets: Tensor, top: Tensor, total: Tensor, weighted: Tensor, at_target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What was known of slices before, (n,) each, joined with a slice of (n, S) fp32 logits: the largest logit, the sum
    of exponentials over it, the same weighted by the logits, and the target's logit, if it is one of these S.
    """
    highest = torch.maximum(top, logits.amax(-1))
    before, now = (top - highest).exp(), (logits - highest[:, None]).exp()
    is_here = (targets >= 0) & (targets < logits.shape[1])
    found = logits.gather(1, targets.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    return (
        highest,
        total * before + now.sum(-1),
        weighted * before + (now * logits).sum(-1),
        torch.where(is_here, found, at_target),
    )
