"""The mix of an SFT stage: exact shares, a fixed order, held-out prompts."""

import random

from hypothesis import given
from hypothesis import strategies as st

from stages.mix import amounts, hold_out, in_order


def rows(count: int) -> list[dict[str, str]]:
    return [{"id": f"d{i}", "prompt": f"p{i}", "response": f"r{i}"} for i in range(count)]


def test_shares_are_kept_and_the_scarcest_source_decides_the_size() -> None:
    assert amounts([100_000, 178], (0.779, 0.221), None) == [627, 178]
    assert amounts([300, 700], (0.5, 0.5), None) == [300, 300]


def test_without_shares_everything_is_taken_and_a_limit_cuts_all_alike() -> None:
    assert amounts([30, 10], None, None) == [30, 10]
    assert amounts([30, 10], None, 100) == [30, 10]
    assert amounts([30, 10], None, 20) == [15, 5]


def test_a_limit_keeps_the_shares() -> None:
    assert amounts([1000, 1000], (0.779, 0.221), 100) == [78, 22]


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 1000)), min_size=1, max_size=5),
    st.none() | st.integers(1, 3000),
)
def test_never_more_than_there_is_and_never_a_demo_away_from_the_share(
    sources: list[tuple[int, int]], limit: int | None
) -> None:
    sizes, weights = zip(*sources, strict=True)
    shares = [weight / sum(weights) for weight in weights]
    taken = amounts(sizes, shares, limit)
    assert all(0 <= number <= size for number, size in zip(taken, sizes, strict=True))
    assert limit is None or sum(taken) <= limit
    assert all(abs(number - share * sum(taken)) < 1.01 for number, share in zip(taken, shares, strict=True))


def test_the_order_depends_on_the_seed_and_not_on_the_files() -> None:
    shuffled = rows(50)
    random.Random(0).shuffle(shuffled)
    assert in_order(rows(50), seed=1) == in_order(shuffled, seed=1) != in_order(rows(50), seed=2)
    assert in_order(rows(50), seed=1, most=7) == in_order(rows(50), seed=1)[:7]


def test_held_out_prompts_are_a_share_of_the_different_ones_at_least_one_and_never_all() -> None:
    prompts = [f"p{i % 100}" for i in range(400)]
    assert len(hold_out(prompts, 0.1)) == 10
    assert len(hold_out(prompts, 0.001)) == 1
    assert hold_out(prompts, 0) == hold_out(["only"], 0.5) == frozenset()
    assert hold_out(prompts, 0.1) < hold_out(prompts, 0.2)
