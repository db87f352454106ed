import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.kernels.middle_choice import (
    MEASURED,
    MOST_TOKENS,
    Tiling,
    choose,
    is_best,
    num_groups,
    takes,
    tilings,
    with_ring,
    x_rows,
)
from headrace.kernels.thin_choice import FEW_TOKENS, MOST_BYTES, RESERVED_BYTES, Product

NUM_SMS = 132
eights = st.integers(1, 2500).map(lambda eighth: 8 * eighth)
products = st.builds(
    Product, st.integers(1, MOST_TOKENS), st.integers(1, 20_000).map(lambda eighth: 8 * eighth), eights
)


@given(products, st.sampled_from([1, 16, 78, 114, NUM_SMS]))
def test_every_product_has_a_tiling_that_fits(product: Product, num_sms: int) -> None:
    tiling = choose(product, num_sms)
    assert tiling.fits(product)
    assert tiling.shared_bytes(product) <= MOST_BYTES


@given(eights.map(lambda rows: 8 * rows), eights, st.sampled_from([range(1, 65), range(65, MOST_TOKENS + 1)]))
def test_a_weight_has_one_kernel_for_all_tokens_that_as_many_warps_multiply(
    out_features: int, in_features: int, tokens: range
) -> None:
    """Else an engine would compile for each number of rows, and a token's bits would change with it."""
    chosen = [
        choose(Product(num_tokens, out_features, in_features), NUM_SMS) for num_tokens in (*tokens[::9], tokens[-1])
    ]
    assert len({(tiling.rows, tiling.splits) for tiling in chosen}) == 1


@given(products)
def test_blocks_that_share_columns_are_all_at_work_at_once(product: Product) -> None:
    """A cluster that waits for a second round would double a launch."""
    for tiling in tilings(product, NUM_SMS):
        assert tiling.splits == 1 or tiling.num_tiles(product) * tiling.splits <= NUM_SMS


@given(
    products,
    st.sampled_from([8, 40, 96, 256]),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(32, 200),
)
def test_memory_holds_the_ring_the_sums_and_what_is_read_behind_x(
    product: Product, rows: int, splits: int, ring_kib: int
) -> None:
    tiling = with_ring(Tiling(rows, splits, 2, alone=False), product, ring_kib << 10)
    stage = 128 * (rows + x_rows(product))
    total = tiling.shared_bytes(product)
    # x in the last stage is read as whole groups of 64 rows.
    assert 1024 + (tiling.stages - 1) * stage + num_groups(product) * 64 * 128 <= total
    # Every other block sends its sums of a share of the rows, 16 bytes a thread for eight of them.
    shares = [sum(eighth // 4 % splits == rank for eighth in range(rows // 8)) for rank in range(splits)]
    threads = -(-product.num_tokens // 16) * 32
    assert 1024 + tiling.stages * stage + (splits - 1) * max(shares) * threads * 16 <= total


@given(products, st.booleans())
def test_one_that_is_to_be_alone_leaves_no_room_for_one_more(product: Product, few: bool) -> None:
    tiling = Tiling(8, 1, 2 if few else 8, alone=True)
    assert 2 * (tiling.shared_bytes(product) + RESERVED_BYTES) > MOST_BYTES + RESERVED_BYTES


def test_few_tokens_small_weights_heads_and_odd_widths_are_left_to_others() -> None:
    assert not is_best(Product(FEW_TOKENS, 4096, 14336))
    assert is_best(Product(FEW_TOKENS + 1, 4096, 14336))
    assert [is_best(Product(num_tokens, 4096, 4096)) for num_tokens in (1, 3, 4, 8, 9)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert is_best(Product(MOST_TOKENS, 4096, 4096))
    assert not is_best(Product(MOST_TOKENS + 1, 4096, 4096))
    assert not is_best(Product(16, 1024, 2048))
    assert is_best(Product(17, 1024, 2048))
    assert is_best(Product(64, 128256, 4096))
    assert not is_best(Product(65, 128256, 4096))
    assert not takes(Product(32, 1001, 4096))
    assert takes(Product(32, 1000, 4096))
    assert not takes(Product(32, 1000, 4096), gated=True)


@pytest.mark.parametrize("shape", MEASURED)
def test_what_was_measured_is_taken_and_can_be_launched(shape: tuple[int, int]) -> None:
    bounds = [0, *(most_tokens for most_tokens, _ in MEASURED[shape])]
    assert bounds == sorted(bounds)
    for fewer_tokens, (most_tokens, tiling) in zip(bounds, MEASURED[shape], strict=False):
        for num_tokens in range(fewer_tokens + 1, most_tokens + 1):
            product = Product(num_tokens, *shape)
            assert choose(product, NUM_SMS) == tiling
            assert tiling.fits(product)


@pytest.mark.parametrize("shape", MEASURED)
def test_a_measured_weight_has_one_kernel_for_all_tokens_that_as_many_warps_multiply(shape: tuple[int, int]) -> None:
    for tokens in (range(1, 65), range(65, MOST_TOKENS + 1)):
        chosen = [choose(Product(num_tokens, *shape), NUM_SMS) for num_tokens in tokens]
        assert len({(tiling.rows, tiling.splits) for tiling in chosen}) == 1
