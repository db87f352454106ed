import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kernels.embedding import tokens_a_thread
from headrace.kernels.encoder_embedding import num_blocks, plan_tokens
from headrace.kernels.pooling import block_threads
from headrace.kernels.rows import divisor, plan_rows, round_rows, vector
from headrace.kernels.stretches import layers, stretch, stretch_flat


@given(
    width=st.integers(1, 200_000),
    num_rows=st.integers(0, 100_000),
    element_bytes=st.sampled_from([2, 4]),
    max_vecs=st.sampled_from([2, 4]),
    warp_vecs=st.sampled_from([2, 4]),
    splits_warps=st.booleans(),
)
def test_a_plan_covers_every_element_of_every_row(
    width: int, num_rows: int, element_bytes: int, max_vecs: int, warp_vecs: int, splits_warps: bool
) -> None:
    plan = plan_rows(width, round_rows(num_rows), element_bytes, 132, max_vecs, warp_vecs, splits_warps=splits_warps)
    assert width % plan.vec == 0
    assert plan.vec * element_bytes <= 16
    assert plan.threads % 32 == 0
    assert 32 <= plan.threads <= 1024
    assert plan.vecs <= max(max_vecs, warp_vecs)
    assert plan.lanes in ({1, 2, 4, 8, 16, 32} if splits_warps and plan.warp_a_row else {32})
    team = plan.lanes if plan.warp_a_row else plan.threads
    if plan.vecs:
        assert team * plan.vecs * plan.vec >= width
        assert plan.even == (team * plan.vecs * plan.vec == width and team & (team - 1) == 0)
    teams = plan.num_blocks(num_rows) * (plan.threads // plan.lanes if plan.warp_a_row else 1)
    assert teams * plan.rows >= num_rows


def test_short_rows_share_a_warp_where_a_kernel_lets_them() -> None:
    assert plan_rows(32, 512, 2, 132, splits_warps=True).lanes == 4
    assert plan_rows(20, 512, 4, 132, splits_warps=True).lanes == 8
    assert plan_rows(32, 512, 2, 132).lanes == 32


@given(width=st.integers(1, 40_000), num_tokens=st.integers(1, 100_000), element_bytes=st.sampled_from([2, 4]))
def test_a_token_s_row_has_a_thread_for_every_element_and_every_token_a_turn(
    width: int, num_tokens: int, element_bytes: int
) -> None:
    plan = plan_tokens(width, round_rows(num_tokens), element_bytes, 132)
    team = 32 if plan.warp_a_row else plan.threads
    if plan.vecs:
        assert width % plan.vec == 0
        assert team * plan.vecs * plan.vec >= width
        assert plan.even == (team * plan.vecs * plan.vec == width and team & (team - 1) == 0)
    blocks = num_blocks(plan, num_tokens, 132)
    assert 1 <= blocks <= plan.num_blocks(num_tokens)
    # No multiprocessor idles for another's further turns.
    assert blocks == plan.num_blocks(num_tokens) or blocks * plan.threads >= 132 * 32 * 32 - plan.threads


@given(num_vecs=st.integers(1, 20_000), most_threads=st.sampled_from([384, 1024]))
def test_a_pooling_block_is_whole_warps_of_whole_tokens(num_vecs: int, most_threads: int) -> None:
    threads = block_threads(num_vecs, most_threads)
    assert threads % 32 == 0
    assert threads <= most_threads
    if num_vecs <= most_threads:
        assert threads // num_vecs == most_threads // num_vecs
    else:
        assert threads == most_threads


@given(num_vecs=st.integers(1, 100_000), num_rows=st.integers(1, 100_000))
def test_stretches_cover_a_row(num_vecs: int, num_rows: int) -> None:
    shape = stretch(num_vecs, num_rows, 132)
    assert shape.threads % 32 == 0
    assert shape.threads <= 256
    covered = shape.vecs * shape.threads * shape.num_stretches
    assert num_vecs <= covered
    assert covered - num_vecs < shape.vecs * shape.threads


def test_a_gather_takes_several_rows_a_thread_where_threads_or_blocks_are_many() -> None:
    taken = [tokens_a_thread(n, 512, 2, 132) for n in (1, 256, 1024, 65536)]
    assert taken == [1, 1, 2, 4]
    assert [tokens_a_thread(n, 128, 1, 132) for n in (256, 2048, 65536)] == [1, 2, 4]
    assert tokens_a_thread(70000, 1, 1, 132) == 4  # of a vector each: few threads, many blocks


@given(num_vecs=st.integers(1, 2**34))
def test_stretches_cover_what_has_no_rows(num_vecs: int) -> None:
    shape = stretch_flat(num_vecs, 132)
    covered = shape.vecs * shape.threads * shape.num_stretches
    assert num_vecs <= covered
    assert covered - num_vecs < shape.vecs * shape.threads


@given(num_blocks=st.integers(0, 2**31))
def test_layers_hold_all_blocks_and_no_layer_is_idle(num_blocks: int) -> None:
    rows, num_layers = layers(num_blocks)
    assert rows <= 65535
    assert 0 <= rows * num_layers - num_blocks < num_layers


@pytest.mark.parametrize(("width", "vec"), [(4096, 8), (12, 4), (50257, 1), (2, 2)])
def test_vectors_divide_a_row(width: int, vec: int) -> None:
    assert vector(width, 2) == vec


@given(number=st.integers(1, 2**31 - 1), n=st.integers(0, 2**31 - 1))
def test_one_multiplication_divides(number: int, n: int) -> None:
    factor, shift = divisor(number)
    assert factor < 2**32
    for near in (n, n // number * number, n // number * number - 1):
        if near >= 0:
            assert near * factor >> shift == near // number
