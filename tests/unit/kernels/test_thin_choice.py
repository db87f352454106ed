from hypothesis import given
from hypothesis import strategies as st

from headrace.kernels.blas import prefers_lt
from headrace.kernels.thin_choice import (
    FEW_TOKENS,
    MOST_BYTES,
    MOST_TOKENS,
    RESERVED_BYTES,
    Product,
    Tiling,
    beats_cublas,
    choose,
    choose_norming,
)

PROCESSOR_BYTES = MOST_BYTES + RESERVED_BYTES

multiples = st.integers(1, 9000).map(lambda eighth: 8 * eighth)
widths = st.sampled_from([576, 768, 1024, 1536, 2048, 3072, 4096, 8192, 14336]) | multiples
products = st.builds(Product, st.integers(1, MOST_TOKENS), st.integers(1, 200_000), widths)


@given(products)
def test_every_product_has_a_tiling_that_fits(product: Product) -> None:
    tiling = choose(product)
    assert tiling.can_wait_for_x(product)
    assert tiling.shared_bytes(product) <= MOST_BYTES


@given(products)
def test_a_norm_joins_only_where_a_block_can_hold_what_it_norms(product: Product) -> None:
    tiling = choose_norming(product)
    if tiling is not None:
        assert product.num_tokens <= FEW_TOKENS
        assert tiling.can_norm(product)
        assert tiling.shared_bytes(product) <= MOST_BYTES


@given(st.integers(1, 200_000), widths)
def test_the_order_of_a_sum_does_not_depend_on_the_number_of_tokens(out_features: int, in_features: int) -> None:
    """A warp's columns follow from the number of warps alone."""
    made = [Product(num_tokens, out_features, in_features) for num_tokens in range(1, MOST_TOKENS + 1)]
    assert len({choose(product).warps for product in made}) == 1
    assert len({tiling.warps for product in made if (tiling := choose_norming(product)) is not None}) <= 1


@given(products, st.integers(1, 400), st.booleans())
def test_blocks_have_no_more_whole_tiles_than_there_are(product: Product, num_blocks: int, dealt: bool) -> None:
    tiling = Tiling(8, 1024, 2, 8, x_in_shared=False, dealt=dealt)
    rows = tiling.whole_tiles(product, num_blocks) * num_blocks * tiling.tile
    left = product.out_features - rows
    assert 0 <= rows <= product.out_features
    if dealt:
        assert left == product.out_features or left >= product.out_features // 8
    else:
        assert left < num_blocks * tiling.tile


@given(products, st.integers(1, 3))
def test_a_block_that_is_to_be_alone_leaves_no_room_for_one_more(product: Product, blocks: int) -> None:
    tiling = Tiling(8, 1024, 2, 8, x_in_shared=False, blocks=blocks, alone=True)
    num_bytes = tiling.shared_bytes(product) + RESERVED_BYTES
    assert (blocks + 1) * num_bytes > PROCESSOR_BYTES
    if not Tiling(8, 1024, 2, 8, x_in_shared=False).shared_bytes(product) * blocks > PROCESSOR_BYTES // 2:
        assert blocks * num_bytes <= PROCESSOR_BYTES


def test_models_of_the_benchmarks_join_norms_at_few_tokens_and_go_to_a_library_at_many() -> None:
    for out_features, in_features in ((6144, 4096), (28672, 4096), (4096, 1024), (6144, 1024), (151936, 1024)):
        most = 2 if (out_features, in_features) == (151936, 1024) else FEW_TOKENS
        for num_tokens in range(1, FEW_TOKENS + 1):
            joins = choose_norming(Product(num_tokens, out_features, in_features)) is not None
            assert joins == (num_tokens <= most)
        assert beats_cublas(Product(2 * FEW_TOKENS, out_features, in_features))
        assert not beats_cublas(Product(MOST_TOKENS + 1, out_features, in_features))
    assert not beats_cublas(Product(FEW_TOKENS + 1, 4096, 14336))
    assert prefers_lt(32, 4096, 14336)
    assert not prefers_lt(64, 4096, 14336)
    assert not prefers_lt(256, 4096, 4096)
