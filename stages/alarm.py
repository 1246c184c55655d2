"""The hacking alarm: does the reward model like the responses better while they get worse?

Reads, while preference rewards are on, their scores of the training responses and the pass@1 on held-out problems
that rules can check; says whether the first has risen while the second has fallen, both beyond noise.

Paper: DeepSeek-R1, supplementary B.5: with too many steps on the helpful reward model its reward rises while
Codeforces falls; hence preference rewards in the last 400 of 1,700 steps only.
How we differ: the paper looks at the curves afterwards; here a person is told, or training stops, while it happens.

Everything is compared with the first look, which is taken after the first step with preference rewards (or, where a
resumed run is to watch more or fewer problems, after the resume). Noise is
1.96 standard errors of the difference: of two samples for the scores, and of the same problems twice for pass@1,
so that easy and hard problems cancel out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import sqrt
from statistics import fmean, stdev
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MODELLED = ("helpfulness", "harmlessness")  # kinds of reward that a model gives
BEYOND_NOISE = 1.96  # standard errors


class Alarm(BaseModel):
    """What to do about reward hacking, and how closely to look. It looks only where `alarm_problems` are named."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["warn", "stop", "off"] = Field(
        "warn", description="stop ends the stage with an error and keeps the last good checkpoint"
    )
    every: int = Field(20, ge=1, description="steps between two looks")
    patience: int = Field(2, ge=1, description="suspicious looks in a row before anything is done")
    num_problems: int = Field(64, ge=8, description="held-out problems of each reference in a look")
    num_samples: int = Field(2, ge=1, description="responses to each of them")


@dataclass(frozen=True)
class Look:
    """What was seen after `step` updates."""

    step: int
    scores: list[float]
    """Mean preference score of each problem that was trained on since the look before, in [0, 1]."""
    right: list[float]
    """Share of right responses to each held-out problem."""
    suspicious: bool = False

    @property
    def score(self) -> float:
        return fmean(self.scores)

    @property
    def pass_at_1(self) -> float:
        return fmean(self.right)


class Watch:
    """Collects scores, compares each look with the first; its `state` belongs in a checkpoint."""

    def __init__(self, alarm: Alarm) -> None:
        self.alarm = alarm
        self.looks: list[Look] = []
        self._scores: list[float] = []

    def note(self, scores: Iterable[float]) -> None:
        """Mean preference score of each problem in the batch that was just sampled (none before they are on)."""
        self._scores += scores

    def is_due(self, step: int) -> bool:
        """Whether it is time for a look after `step` updates."""
        return bool(self._scores) and (not self.looks or step - self.looks[-1].step >= self.alarm.every)

    def look(self, step: int, right: Sequence[float]) -> Look:
        """Takes down what is seen after `step` updates; `right` as in `Look`, always of the same problems."""
        seen = Look(step, self._scores, list(right))
        if self.looks and len(self.looks[0].right) != len(right):
            self.looks = []  # `num_problems` was changed before a resume: this is the first look at these
        if self.looks:
            seen = replace(seen, suspicious=is_hacking(self.looks[0], seen))
        self.looks.append(seen)
        self._scores = []
        return seen

    @property
    def is_alarmed(self) -> bool:
        """Whether the last `patience` looks were all suspicious."""
        last = self.looks[-self.alarm.patience :]
        return len(last) == self.alarm.patience and all(look.suspicious for look in last)

    @property
    def last_calm(self) -> int | None:
        """The step of the last look that was not suspicious; None before the first look."""
        return next((look.step for look in reversed(self.looks) if not look.suspicious), None)

    def describe(self) -> str:
        """What the alarm is about, in one sentence."""
        first, last = self.looks[0], self.looks[-1]
        return (
            f"reward hacking: from step {first.step} to {last.step} the preference score rose from {first.score:.2f} "
            f"to {last.score:.2f} while pass@1 on {len(last.right)} held-out problems fell from "
            f"{first.pass_at_1:.0%} to {last.pass_at_1:.0%}"
        )

    @property
    def state(self) -> dict[str, Any]:
        """Everything a resume needs, as plain values."""
        return {"looks": [asdict(look) for look in self.looks], "scores": self._scores}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        self.looks = [Look(**look) for look in state["looks"]]
        self._scores = list(state["scores"])


def is_hacking(first: Look, now: Look) -> bool:
    """Whether the scores have risen and pass@1 has fallen since the first look, both beyond noise."""
    risen = now.score - first.score > BEYOND_NOISE * sqrt(_error(now.scores) ** 2 + _error(first.scores) ** 2)
    lost = [before - after for before, after in zip(first.right, now.right, strict=True)]
    return risen and fmean(lost) > BEYOND_NOISE * _error(lost)


def _error(values: Sequence[float]) -> float:
    """The standard error of a mean."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
