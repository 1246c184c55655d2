"""Correcting for the engine that sampled: vLLM's numbers are not exactly those of the model in training.

Each response (or token) is weighted by the ratio of its probability under the trained model before the update
to the one it was sampled with, cut or dropped beyond bounds. Same four modes, bounds and defaults as TRL
(`vllm_importance_sampling_mode`, `_clip_max`, `_clip_min`), which takes a forward pass of its own over all
rows for the first probability; where that is the model the loss is computed with, the loss's own pass already
knows it.

Shapes: B rows, C completion tokens.
"""

import torch

from pipeline.errors import ModelError

AGREES = 0.02
"""Nats a token, on average: up to here the engine's log-probabilities stand for the model's before the update, and no
pass is taken for those where several updates are made on one batch."""
STRANGER = 1.0
"""Nats a token: from here on the engine does not sample from the model in training."""


def check_agreement(gap: float | None) -> None:
    """ModelError when what was sampled does not come from the model in training."""
    if gap is not None and not gap < STRANGER:
        raise ModelError(
            f"the engine's log-probabilities are {gap:.2f} nats a token away from those of the model in training: "
            "it does not sample from that model",
            hint="set sampler: transformers; a wake-up that lost weights shows like this (vllm.enforce_eager: true)",
        )


def importance_ratio(
    logps_BC: torch.Tensor,
    sampling_logps_BC: torch.Tensor,
    mask_BC: torch.Tensor,
    mode: str,
    clip_max: float | None,
    clip_min: float | None,
) -> torch.Tensor:
    """Weights of the tokens, (B, C), or of whole responses, (B, 1), by `mode`.

    `logps_BC` are those of the model before the update. A token that the engine gave no number for (NaN) does not
    count. `mode` is `token_` or `sequence_`, then `truncate` (cut at the bounds) or `mask` (0 beyond them).
    """
    difference = torch.nan_to_num((logps_BC - sampling_logps_BC) * mask_BC, nan=0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(-1, keepdim=True)
    ratio = difference.exp()
    if mode.endswith("truncate"):
        return ratio.clamp(min=clip_min, max=clip_max)
    low = ratio < clip_min if clip_min is not None else torch.zeros_like(ratio, dtype=torch.bool)
    high = ratio > clip_max if clip_max is not None else torch.zeros_like(ratio, dtype=torch.bool)
    return ratio.masked_fill(low | high, 0.0)
