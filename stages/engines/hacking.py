"""The hacking alarm at work: takes a look between two steps of GRPO, and warns or stops (see `stages/alarm.py`).

Looking changes nothing: held-out problems have a random stream of their own, the same in every look.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from stages.alarm import MODELLED, Watch
from stages.engines import ranks
from stages.engines.samplers import Completion, Sampler, Sampling

_log = logging.getLogger(__name__)


class HackingWatch:
    """A `Watch` with prompts of held-out problems, a sampler to answer them, and a check.

    `shares_right` takes the responses to each prompt and gives the share of right ones for each.
    """

    def __init__(
        self,
        watch: Watch,
        prompts: Sequence[str],
        shares_right: Callable[[list[list[Completion]]], list[float]],
        sampler: Sampler,
        sampling: Sampling,
    ) -> None:
        self.watch, self.prompts, self.shares_right = watch, prompts, shares_right
        self.sampler, self.sampling = sampler, sampling

    def note(self, rewards: torch.Tensor, kinds: Sequence[str], group_size: int) -> None:
        """Takes down what reward models said of a batch; `rewards` (B, kinds), NaN where a part does not apply."""
        liked = rewards[:, [k for k, kind in enumerate(kinds) if kind in MODELLED]]
        by_problem = liked.reshape(len(rewards) // group_size, -1).nanmean(1)
        self.watch.note(by_problem[~by_problem.isnan()].tolist())

    def after_step(self, model: Any, step: int, control: Any) -> dict[str, float]:
        """Looks if it is time, and acts; returns what belongs in the row of `step`.

        `control` is transformers' TrainerControl: training that may be stopped for hacking saves a checkpoint at each
        calm look, and none at the alarm, so that a resume meets the same alarm again.
        """
        if not self.watch.is_due(step):
            return {}
        seen = self.watch.look(step, ranks.from_main(lambda: self._shares_right(model, step)))
        if self.watch.is_alarmed:
            _log.warning(self.watch.describe())
        if self.has_stopped:
            control.should_training_stop, control.should_save = True, False
        elif self.stops and not seen.suspicious:
            control.should_save = True
        return {
            "alarm/preference_score": seen.score,
            "alarm/pass_at_1": seen.pass_at_1,
            "alarm/suspicious": float(seen.suspicious),
        }

    def _shares_right(self, model: Any, step: int) -> list[float]:
        """The share of right responses to each held-out problem now."""
        self.sampler.sync(model, step)
        groups = self.sampler.generate(self.prompts, self.watch.alarm.num_samples, self.sampling)
        self.sampler.sleep()
        return self.shares_right(groups)

    @property
    def stops(self) -> bool:
        """Whether an alarm ends the training."""
        return self.watch.alarm.action == "stop"

    @property
    def has_stopped(self) -> bool:
        """Whether it did."""
        return self.stops and self.watch.is_alarmed

    @property
    def kept_step(self) -> int | None:
        """The checkpoint that must not be deleted: that of the last calm look."""
        return self.watch.last_calm if self.stops else None
