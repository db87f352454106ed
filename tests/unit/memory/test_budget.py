import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ConfigurationError
from headrace.memory.budget import ALIGNMENT_BYTES, KVShape, Needs, available_bytes, fill, hold

GIB = 1 << 30
#: Llama 3 8B in bf16.
L8B = KVShape(num_layers=32, num_kv_heads=8, head_dim=128, page_size=16, element_bytes=2)
NEEDS = Needs(row_tokens=8192, step_bytes=GIB, least_step_bytes=1 << 20)

SHAPES = st.builds(
    KVShape,
    st.integers(1, 40),
    st.integers(1, 16),
    st.sampled_from([8, 64, 80, 128]),
    st.sampled_from([1, 4, 16, 64]),
    st.sampled_from([2, 4]),
)


def test_the_weights_and_the_reserve_come_out_of_the_share_of_what_was_free_before_them() -> None:
    assert available_bytes(84 * GIB, 16 * GIB, 0.9, GIB) == 73 * GIB
    assert available_bytes(100 * GIB, 0, 1.0, 0) == 100 * GIB
    assert available_bytes(GIB, 99 * GIB, 0.5, 0) < 0


@given(shape=SHAPES, num_bytes=st.integers(2 * GIB, 100 * GIB), kv_tokens=st.none() | st.integers(64, 1 << 20))
def test_a_filled_device_holds_what_is_promised_beside_the_longest_step(
    shape: KVShape, num_bytes: int, kv_tokens: int | None
) -> None:
    needs = Needs(row_tokens=64, step_bytes=100 << 20, least_step_bytes=1 << 20)
    budget = fill(shape, needs, num_bytes, kv_tokens)
    assert budget.num_bytes <= num_bytes
    assert budget.chunk_bytes == budget.chunk_pages * shape.page_bytes
    assert budget.chunk_bytes % ALIGNMENT_BYTES == 0
    num_step_chunks = -(-needs.step_bytes // budget.chunk_bytes)
    promised = -(-budget.kv_tokens // shape.page_size)
    assert promised <= budget.max_pages
    assert -(-promised // budget.chunk_pages) + num_step_chunks <= budget.num_chunks
    if kv_tokens is not None:
        assert budget.max_pages <= shape.pages_for(kv_tokens)
    else:
        assert budget.num_bytes > num_bytes - budget.chunk_bytes


def test_an_h200_holds_hundreds_of_thousands_of_tokens_of_an_8b_model() -> None:
    budget = fill(L8B, NEEDS, 105 * GIB)
    assert L8B.page_bytes == 2 << 20
    assert budget.chunk_bytes == 64 << 20
    assert budget.kv_tokens == 104 * GIB // L8B.page_bytes * 16


def test_a_device_too_small_for_one_request_is_refused_with_the_settings_that_would_help() -> None:
    with pytest.raises(ConfigurationError, match=r"900 MiB.*8192 tokens wants.*memory_fraction.*max_context_tokens"):
        fill(L8B, NEEDS, 900 << 20)
    with pytest.raises(ConfigurationError, match="memory_fraction"):
        fill(L8B, NEEDS, -GIB)
    fill(L8B, NEEDS, 1400 << 20)


def test_a_cap_below_one_request_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="raise kv_tokens"):
        fill(L8B, NEEDS, 100 * GIB, 8000)
    with pytest.raises(ConfigurationError, match="raise kv_tokens"):
        hold(L8B, NEEDS, 8000)


@given(shape=SHAPES, kv_tokens=st.integers(64, 1 << 18), step_bytes=st.integers(1, 1 << 28))
def test_a_pool_for_so_many_tokens_holds_them_and_a_step_and_little_more(
    shape: KVShape, kv_tokens: int, step_bytes: int
) -> None:
    budget = hold(shape, Needs(64, step_bytes, 1), kv_tokens)
    wanted = shape.pages_for(kv_tokens) * shape.page_bytes + step_bytes
    assert wanted <= budget.num_bytes < wanted + 2 * budget.chunk_bytes
    assert budget.kv_tokens == kv_tokens
    assert budget.max_pages == shape.pages_for(kv_tokens)
