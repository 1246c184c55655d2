"""The order of problems: late ones come late, in their share, and every order is the same after a resume."""

import itertools

import pytest
from trl.trainer.utils import RepeatSampler

from stages.engines.schedule import Late, LateSampler, num_late_problems

NUM_EARLY, NUM_LATE = 10, 6


def order(max_steps: int = 20, repeat_count: int = 1, from_fraction: float = 0.765, **settings: int) -> LateSampler:
    late = Late(NUM_LATE, from_fraction, share=0.5)
    pattern = {"batch_size": 4, "mini_repeat_count": 3, "repeat_count": repeat_count, "seed": 0, "shuffle": True}
    return LateSampler(late, NUM_EARLY + NUM_LATE, max_steps, **{**pattern, **settings})


@pytest.mark.parametrize("repeat_count", [1, 2, 4])
def test_no_late_problem_is_drawn_before_its_time_and_then_they_have_their_share(repeat_count: int) -> None:
    batches = list(order(repeat_count=repeat_count).batches())
    assert len(batches) * repeat_count == 20
    for number, batch in enumerate(batches):
        is_late = number * repeat_count / 20 >= 0.765
        assert sum(index >= NUM_EARLY for index in batch) == (2 if is_late else 0)
        assert len(set(batch)) == 4


def test_the_last_400_of_1700_steps_are_late_as_in_the_paper() -> None:
    late = [any(index >= NUM_EARLY for index in batch) for batch in order(max_steps=1700).batches()]
    assert late.index(True) in (1300, 1301) and all(late[1301:])


def test_every_problem_has_its_turn_before_one_comes_again() -> None:
    drawn = list(itertools.chain.from_iterable(order(from_fraction=0.99).batches()))
    assert len(set(drawn[:8])) == 8  # two batches of four from ten; the rest is shuffled in again
    late = list(itertools.chain.from_iterable(order(from_fraction=0.0).batches()))
    assert {index for index in late[:12] if index >= NUM_EARLY} == set(range(NUM_EARLY, NUM_EARLY + NUM_LATE))


def test_the_pattern_is_that_of_trl() -> None:
    ours = list(order(max_steps=4, repeat_count=2))
    batches = [index for batch in order(max_steps=4, repeat_count=2).batches() for index in batch]
    theirs = list(RepeatSampler(batches, mini_repeat_count=3, batch_size=4, repeat_count=2, shuffle=False))
    assert ours == [batches[place] for place in theirs]
    assert len(order(max_steps=4, repeat_count=2)) == len(ours)


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    assert list(order()) == list(order()) != list(order(seed=1))
    assert list(order(shuffle=False))[:12:3] == [0, 1, 2, 3]


def test_there_is_at_least_one_late_problem() -> None:
    assert [num_late_problems(32, 0.5), num_late_problems(4, 0.01), num_late_problems(4, 1.0)] == [16, 1, 4]
