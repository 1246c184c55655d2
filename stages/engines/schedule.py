"""The order of problems: which of them each step of GRPO takes.

Reads how many problems there are; gives the index of a problem for every response of every step, in TRL's pattern
(each problem G times in a row, each batch as often as it is trained on).

Paper: DeepSeek-R1 §3.2.2: general prompts enter in the last 400 of 1,700 steps of the final RL (from 0.765 on).
How we differ: their share of a step's problems is a setting; the paper does not say it.

Both orders depend on the seed and the step alone, so a resumed run takes the problems of the uninterrupted one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):
    """TRL's order of problems, but an epoch's shuffle depends on (seed, epoch) alone: a resume finds it."""

    def __init__(self, epoch: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(1_000_003 * (self.seed or 0) + self.epoch())
        return super().__iter__()


@dataclass(frozen=True)
class Late:
    """Problems that enter late: the last `num_problems` of the data set."""

    num_problems: int
    from_fraction: float
    """Share of the steps after which they are drawn."""
    share: float
    """Their share of the problems of such a step."""


class LateSampler(Sampler[int]):
    """One order for a whole run of `max_steps`: two decks of problems, shuffled anew when they run out.

    Args as TRL's RepeatSampler has them: `batch_size` problems, each `mini_repeat_count` times in a row, and each
    batch `repeat_count` times, which is as many steps. Whether late problems are drawn is decided where a batch is
    sampled, by the same fraction that rewards with `from_fraction` go by.
    """

    def __init__(
        self,
        late: Late,
        num_problems: int,
        max_steps: int,
        batch_size: int,
        mini_repeat_count: int,
        repeat_count: int,
        shuffle: bool,
        seed: int,
    ) -> None:
        self.late, self.max_steps = late, max_steps
        self.batch_size, self.mini_repeat_count, self.repeat_count = batch_size, mini_repeat_count, repeat_count
        self.num_early = num_problems - late.num_problems
        self._seeds = [f"{kind} {seed}" if shuffle else None for kind in ("early", "late")]

    def __len__(self) -> int:
        return len(self._starts) * self.batch_size * self.mini_repeat_count * self.repeat_count

    def __iter__(self) -> Iterator[int]:
        for batch in self.batches():
            for _ in range(self.repeat_count):
                for index in batch:
                    yield from [index] * self.mini_repeat_count

    def batches(self) -> Iterator[list[int]]:
        """The problems of each batch."""
        early = Deck(range(self.num_early), self._seeds[0])
        late = Deck(range(self.num_early, self.num_early + self.late.num_problems), self._seeds[1])
        for start in self._starts:
            is_late = start / self.max_steps >= self.late.from_fraction
            num_late = num_late_problems(self.batch_size, self.late.share) if is_late else 0
            yield early.draw(self.batch_size - num_late) + late.draw(num_late)

    @property
    def _starts(self) -> range:
        """The number of steps done when each batch is sampled."""
        return range(0, self.max_steps, self.repeat_count)


class Deck:
    """Problems in a shuffled order; when fewer are left than are wanted, all are shuffled again."""

    def __init__(self, indices: range, seed: str | None) -> None:
        self.indices = indices
        self._random = Random(seed) if seed is not None else None
        self._left: list[int] = []

    def draw(self, count: int) -> list[int]:
        """`count` different problems."""
        if len(self._left) < count:
            self._left = list(self.indices)
            if self._random:
                self._random.shuffle(self._left)
        drawn, self._left = self._left[:count], self._left[count:]
        return drawn


def num_late_problems(num_problems: int, share: float) -> int:
    """How many of a late step's problems are late ones: at least one."""
    return max(1, round(share * num_problems))
