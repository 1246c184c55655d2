"""Log-probabilities of given tokens from hidden states, tile by tile: the (N, V) logits never exist as a whole.

A token's log-probability depends on its own hidden state only, so its gradient is a direction known in the forward
pass, `d logp / d h = (W[target] - softmax W) / temperature`, times whatever number the loss sends back. The direction
is kept (N × hidden numbers) and the backward pass is one multiplication: two matrix products where recomputing the
logits needs three. The head is frozen, so nothing else has a gradient; entropies have none either.

A head that waits in host memory comes in slices of the vocabulary, twice: for the sums of the softmax, then for the
directions. That is the third product again, and two copies of the head, for all of its place on the GPU.

Shapes: N tokens, V vocabulary, S of it in a slice.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from stages.engines.fused import joined_sums, probabilities, shares, token_terms
from stages.engines.outer_weights import slices


class TokenTerms(NamedTuple):
    """Of each token, (N,), fp32; and the gradient of its log-probability, (N, hidden), if that was asked for."""

    logps: Tensor
    entropies: Tensor
    is_top1: Tensor
    direction: Tensor | None


def head_terms(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, tile: int, needs_gradient: bool
) -> TokenTerms:
    """See the module docstring; `tile` is how many tokens have logits at once."""
    if weight.device != hidden.device:
        return sliced_head_terms(hidden, weight, targets, temperature, tile, needs_gradient)
    parts = [
        _tile(hidden[i : i + tile], weight, targets[i : i + tile], temperature, needs_gradient)
        for i in range(0, len(hidden), tile)
    ]
    logps, entropies, is_top1, directions = zip(*parts, strict=True)
    direction = torch.cat(directions) if needs_gradient else None
    return TokenTerms(torch.cat(logps), torch.cat(entropies), torch.cat(is_top1), direction)


def _tile(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    logits = _in_fp32(hidden, weight)
    if temperature != 1.0:
        logits /= temperature
    logps, entropies, is_top1 = token_terms(logits, targets)
    if not needs_gradient:
        return logps, entropies, is_top1, None
    at_target = logits.gather(1, targets[:, None]).squeeze(1)
    pull = probabilities(logits, at_target, logps, weight.dtype) @ weight
    return logps, entropies, is_top1, (weight[targets] - pull) / temperature


def sliced_head_terms(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, tile: int, needs_gradient: bool
) -> TokenTerms:
    """The same with a weight that is elsewhere."""
    tiles = [slice(i, i + tile) for i in range(0, len(hidden), tile)]
    top, at_target = (torch.full((len(hidden),), -torch.inf, device=hidden.device) for _ in range(2))
    total, weighted = torch.zeros_like(top), torch.zeros_like(top)
    for start, part in slices(weight, hidden.device):
        for here in tiles:
            logits = _in_fp32(hidden[here], part).div_(temperature)
            before = top[here], total[here], weighted[here], at_target[here]
            found = joined_sums(logits, targets[here] - start, *before)
            top[here], total[here], weighted[here], at_target[here] = found
    lse = top + total.log()
    found = at_target - lse, lse - weighted / total, at_target >= top
    if not needs_gradient:
        return TokenTerms(*found, None)
    pull = torch.zeros(hidden.shape, device=hidden.device)  # in fp32, for it is added up over the slices
    for _, part in slices(weight, hidden.device):
        for here in tiles:
            logits = _in_fp32(hidden[here], part).div_(temperature)
            pull[here] += _in_fp32(shares(logits, lse[here], weight.dtype), part.T)
    at_targets = weight[targets.to(weight.device)].to(hidden.device)
    return TokenTerms(*found, ((at_targets - pull) / temperature).to(weight.dtype))


def _in_fp32(hidden: Tensor, weight: Tensor) -> Tensor:
    """A product in fp32; on CUDA the product of bf16 matrices is written out in fp32, without rounding in between."""
    if hidden.is_cuda and hidden.dtype != torch.float32:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return hidden.float() @ weight.float().T
