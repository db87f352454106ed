import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kernels.rows import divisor, plan_rows, round_rows, vector
from headrace.kernels.stretches import layers, stretch


@given(
    width=st.integers(1, 200_000),
    num_rows=st.integers(0, 100_000),
    element_bytes=st.sampled_from([2, 4]),
    max_vecs=st.sampled_from([2, 4]),
    warp_vecs=st.sampled_from([2, 4]),
)
def test_a_plan_covers_every_element_of_every_row(
    width: int, num_rows: int, element_bytes: int, max_vecs: int, warp_vecs: int
) -> None:
    plan = plan_rows(width, round_rows(num_rows), element_bytes, 132, max_vecs, warp_vecs)
    assert width % plan.vec == 0
    assert plan.vec * element_bytes <= 16
    assert plan.threads % 32 == 0
    assert 32 <= plan.threads <= 1024
    assert plan.vecs <= max(max_vecs, warp_vecs)
    team = 32 if plan.warp_a_row else plan.threads
    if plan.vecs:
        assert team * plan.vecs * plan.vec >= width
        assert plan.even == (team * plan.vecs * plan.vec == width and team & (team - 1) == 0)
    teams = plan.num_blocks(num_rows) * (plan.threads // 32 if plan.warp_a_row else 1)
    assert teams * plan.rows >= num_rows


@given(num_vecs=st.integers(1, 100_000), num_rows=st.integers(1, 100_000))
def test_stretches_cover_a_row(num_vecs: int, num_rows: int) -> None:
    shape = stretch(num_vecs, num_rows, 132)
    assert shape.threads % 32 == 0
    assert shape.threads <= 256
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
