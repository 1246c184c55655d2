"""What a step of GRPO says of itself: parts of its row in `metrics.jsonl`, and the note beside the bar.

Shapes: B responses, K kinds of reward.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from stages.engines.samplers import Completion
from stages.measures import NOT_REASONING


def sampling_curves(completions: Sequence[Completion]) -> dict[str, float]:
    """Length, truncation and entropy of a batch of responses."""
    num_tokens = sum(len(c.token_ids) for c in completions)
    return {
        "mean_response_tokens": num_tokens / len(completions),
        "clipped_share": sum(c.truncated for c in completions) / len(completions),
        # Minus the log-probability of a sampled token is an unbiased estimate of the entropy at its position; over
        # all responses, where TRL's own figure would cover only those that are trained on.
        "entropy": -sum(sum(c.logprobs) for c in completions) / num_tokens,
        "sampled_tokens": float(num_tokens),
    }


def reward_table(parts: Sequence[Mapping[str, float | None]], kinds: Sequence[str]) -> torch.Tensor:
    """Every part of the reward of each response, (B, K) float32; NaN where a part does not apply."""
    values = [[part[f"reward/{kind}"] for kind in kinds] for part in parts]
    return torch.tensor([[math.nan if value is None else value for value in row] for row in values])


def reward_curves(
    rewards: torch.Tensor, kinds: Sequence[str], problems: Sequence[Mapping[str, str]]
) -> dict[str, float]:
    """The mean of each part of the reward, (B, K) with NaN where it does not apply, and `pass_at_1`: the mean
    accuracy on reasoning problems, which prompts that enter late do not touch.
    """
    found = {f"reward/{kind}": _mean(rewards[:, k]) for k, kind in enumerate(kinds)}
    if "accuracy" in kinds:
        reasoning = torch.tensor([problem.get("domain") not in NOT_REASONING for problem in problems])
        found["pass_at_1"] = _mean(rewards[reasoning.to(rewards.device), kinds.index("accuracy")])
    return {name: value for name, value in found.items() if value is not None}


def training_curves(means: Mapping[str, Sequence[float]], num_tokens: Sequence[float]) -> dict[str, float]:
    """Means over all tokens of what TRL measured in each micro-batch; `num_tokens` of each."""
    ours = {"kl": "kl", "clip_ratio/region_mean": "clip_ratio", "engine_gap": "engine_gap"}
    return {
        ours[name]: sum(value * share for value, share in zip(values, num_tokens, strict=True)) / sum(num_tokens)
        for name, values in means.items()
        if name in ours and values
    }


def note(row: Mapping[str, float]) -> str:
    """What a person wants to see beside the bar."""
    right = f"pass@1 {row['pass_at_1']:.0%} · " if "pass_at_1" in row else ""
    doubt = " · reward hacking?" if row.get("alarm/suspicious") else ""
    seen = f"{right}reward {row['reward']:.2f} · {row['mean_response_tokens']:.0f} tokens" if "reward" in row else right
    return seen + doubt


def _mean(values: torch.Tensor) -> float | None:
    return None if values.isnan().all() else values.nanmean().item()
