"""What a reward is, what it looks at, and how several of them become one number.

Reads samples (`Sample`: a problem and one parsed response to it); gives, for each sample, every reward by
itself and their weighted sum (`score_all`, `score_many`).

Paper: DeepSeek-R1, sections 2.2.2 (rule-based rewards), 2.3.2 and 2.3.3 (which reward applies to which data
and when).
How we differ: weights, domains, scope and schedule are settings; `None` means "does not apply", which is not
the same as 0. Text from a model never raises; a bug of ours does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import ConfigError
from stages.chat import Response

Scope = Literal["reasoning", "answer", "whole"]


@dataclass(frozen=True)
class Sample:
    """One response to one problem, with what a reward may look at."""

    problem: Mapping[str, str]
    """A problem row: id, prompt, answer, checker, domain, language."""
    response: Response
    num_tokens: int
    """Length of the completion in tokens, end token included."""
    truncated: bool
    """The completion was cut at the length limit."""
    max_tokens: int
    """The length limit in tokens."""
    fraction: float = 0.0
    """Share of the training steps already done, in [0, 1]."""


class Reward(BaseModel):
    """One part of the reward. A subclass sets `kind` and writes `score` (or `score_many`, for batches)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """Name in the table `REWARDS`, in settings and in logs."""
    weight: float = 1.0
    """Factor in the sum."""
    domains: tuple[str, ...] = ()
    """Domains of the problems it applies to; empty = all."""
    scope: Scope = "whole"
    """The part of the response it looks at, for rewards that measure text."""
    from_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """It applies only after this share of the steps (paper: preference rewards in the last 23.5 %)."""

    def score(self, sample: Sample) -> float | None:
        """The reward of one sample; None if it does not apply to this sample."""
        return self.score_many([sample])[0]

    def score_many(self, samples: Sequence[Sample]) -> list[float | None]:
        """The reward of each sample, in order."""
        return [self.score(sample) for sample in samples]

    def applies(self, sample: Sample) -> bool:
        """Whether domain and schedule let this reward look at the sample."""
        in_domain = not self.domains or sample.problem["domain"] in self.domains
        return in_domain and sample.fraction >= self.from_fraction

    def text(self, sample: Sample) -> str | None:
        """The part of the response that `scope` names; None if the response has no such part."""
        response = sample.response
        return {"reasoning": response.reasoning, "answer": response.answer, "whole": response.text}[self.scope]


def score_all(rewards: Sequence[Reward], sample: Sample) -> dict[str, float | None]:
    """One sample's `reward` (weighted sum of what applies; None if nothing does) and each part as
    `reward/<kind>`.
    """
    return score_many(rewards, [sample])[0]


def score_many(rewards: Sequence[Reward], samples: Sequence[Sample]) -> list[dict[str, float | None]]:
    """`score_all` for a batch: faster, because slow checks run side by side.

    Raises ConfigError if two rewards have the same kind: their parts could not be told apart in the log.
    """
    kinds = [reward.kind for reward in rewards]
    if len(set(kinds)) < len(kinds):
        raise ConfigError(
            f"a reward kind is listed twice: {', '.join(kinds)}",
            hint="keep one of them and change its weight, or limit each to other domains",
        )
    columns = [_column(reward, samples) for reward in rewards]
    return [_sum(rewards, [column[i] for column in columns]) for i in range(len(samples))]


def _column(reward: Reward, samples: Sequence[Sample]) -> list[float | None]:
    column: list[float | None] = [None] * len(samples)
    rows = [i for i, sample in enumerate(samples) if reward.applies(sample)]
    for i, value in zip(rows, reward.score_many([samples[i] for i in rows]), strict=True):
        column[i] = value
    return column


def _sum(rewards: Sequence[Reward], values: Sequence[float | None]) -> dict[str, float | None]:
    weighted = [reward.weight * value for reward, value in zip(rewards, values, strict=True) if value is not None]
    parts = {f"reward/{reward.kind}": value for reward, value in zip(rewards, values, strict=True)}
    return {"reward": sum(weighted) if weighted else None, **parts}
