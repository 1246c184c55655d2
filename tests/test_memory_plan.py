"""The memory plan is arithmetic over shapes: near what was measured, monotonous, and never over what is allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.engines.core import Core
from stages.memory_plan import (
    GIB,
    Plan,
    Setup,
    Shape,
    estimated,
    make_plan,
    most_tokens,
    resident_bytes,
    seconds,
    tiles_of,
)
from tests.test_layerwise import adapted

QWEN_1_5B = {
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 8960,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
SHAPE, QLORA = Shape.of(QWEN_1_5B), Setup(rank=32, quantized=True, optimizer_bytes=2)
# Peaks of torch's allocator in training steps on an H100, GiB (docs/performance.md). Since then a copy of the adapter
# in bf16 is kept too.
COPY = SHAPE.adapter_weights(32) * 2 / GIB
MEASURED = {
    Plan(6544, "host", True, 512, 64): 1.849,
    Plan(6544, "host", False, 1024, 128): 1.835,
    Plan(1042, "host", False, 256, 64): 1.651,
    Plan(6544, "gpu", True, 4096, 512): 3.009,
    Plan(6544, "host", True, 2240, 256): 1.979,
    Plan(1636, "host", True, 576, 128): 1.652,
}


@pytest.mark.parametrize("plan", MEASURED, ids=str)
def test_the_estimate_is_within_a_twentieth_of_what_was_measured_and_hardly_below(plan: Plan) -> None:
    peak = estimated(SHAPE, QLORA, plan, 0, resident_bytes(SHAPE, QLORA)).peak_bytes / GIB
    assert 0.99 < peak / (MEASURED[plan] + COPY) < 1.05


@given(allowed=st.floats(1, 12), longest=st.integers(16, 5000), rows=st.integers(1, 64))
def test_a_plan_that_fits_is_within_what_is_allowed_and_takes_the_longest_row(
    allowed: float, longest: int, rows: int
) -> None:
    plan = make_plan(SHAPE, QLORA, int(allowed * GIB), longest, longest * rows)
    assert plan.fits == (plan.peak_bytes <= allowed * GIB)
    assert longest <= plan.tokens <= max(longest, most_tokens(SHAPE.hidden))


@given(longest=st.integers(16, 5000), rows=st.integers(1, 64), more=st.floats(1, 3))
def test_more_memory_is_never_slower(longest: int, rows: int, more: float) -> None:
    batch, least = longest * rows, make_plan(SHAPE, QLORA, 0, longest, longest * rows)
    assert not least.fits
    plans = [make_plan(SHAPE, QLORA, int(least.peak_bytes * share), longest, batch) for share in (1, more)]
    assert all(plan.fits for plan in plans)
    slow, fast = (seconds(SHAPE, plan, longest, batch) for plan in plans)
    assert fast <= slow


def test_a_narrow_model_takes_a_batch_in_one_pass_that_a_wide_one_takes_in_several() -> None:
    narrow = Shape.of({**QWEN_1_5B, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3})
    plans = [make_plan(shape, QLORA, 70 * GIB, 300, 50_000) for shape in (narrow, SHAPE)]
    assert [plan.tokens for plan in plans] == [50_000, most_tokens(SHAPE.hidden)]


def test_inputs_go_to_the_host_only_where_the_gpu_has_no_room_for_them() -> None:
    kept = [make_plan(SHAPE, QLORA, int(gib * GIB), 1042, 6544) for gib in (2.0, 70)]
    assert [plan.keep for plan in kept] == ["host", "gpu"]


def test_the_embedding_leaves_the_gpu_before_a_batch_is_cut_into_passes() -> None:
    plans = {gib: make_plan(SHAPE, QLORA, int(gib * GIB), 1042, 6544) for gib in (1.7, 2.5)}
    assert [(plan.outer, plan.tokens) for plan in plans.values()] == [("host", 6544), ("gpu", 6544)]


def test_between_steps_the_embedding_is_there_and_what_a_step_makes_anew_is_not() -> None:
    smallest = estimated(SHAPE, QLORA, Plan(64, "host", False, 64, 64, "host"), 0, resident_bytes(SHAPE, QLORA))
    gradient_and_copy = SHAPE.adapter_weights(32) * (4 + 2)
    assert smallest.peak_bytes == resident_bytes(SHAPE, QLORA) - gradient_and_copy


def test_attention_is_kept_for_long_rows_before_tiles_are_wide_and_for_short_ones_after() -> None:
    llama_8b = Shape(4096, 32, 32, 8, 128, 14336, 128256, tied=False)
    kept, wide = Plan(20000, "host", True, 1024, 512), Plan(20000, "host", False, 2048, 512)
    assert seconds(llama_8b, kept, 20000, 20000) < seconds(llama_8b, wide, 20000, 20000)
    assert seconds(llama_8b, kept, 500, 20000) > seconds(llama_8b, wide, 500, 20000)


@given(tokens=st.integers(1, 10**5))
def test_tiles_share_the_tokens_out_evenly(tokens: int) -> None:
    for tile in tiles_of(tokens):
        number = -(-tokens // tile)
        assert tile * number - tokens < 64 * number


def test_a_shape_knows_the_weights_of_the_model_it_describes() -> None:
    model = adapted("llama")
    core = Core(model, "adamw_torch")
    linears = [m for m in model.get_base_model().model.layers.modules() if hasattr(m, "base_layer")]
    assert core.shape.layers * core.shape.linear_weights == sum(m.base_layer.weight.numel() for m in linears)
    assert core.shape.adapter_weights(core.setup.rank) == sum(p.numel() for p in model.parameters() if p.requires_grad)
