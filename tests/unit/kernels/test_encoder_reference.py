"""The encoders' table in torch against the definition of each operation, row by row, for any lengths in any order."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.encoder_reference import EncoderReference
from headrace.kernels.encoder_table import Embeddings, EncoderBatch, Norm

NUM_HEADS, HEAD_DIM = 3, 8
WIDTH = NUM_HEADS * HEAD_DIM
TABLE = EncoderReference()

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(lengths: list[int], type_ids: Tensor | None = None) -> EncoderBatch:
    ids = torch.arange(sum(lengths)) % 50
    positions = torch.cat([torch.arange(length) for length in lengths])
    return TABLE.pack(ids, positions, type_ids, lengths)


def norm_of(width: int) -> Norm:
    return Norm(drawn(width, seed=8), drawn(width, seed=9), 1e-3)


def rows_of(x: Tensor, lengths: list[int]) -> list[Tensor]:
    return list(torch.split_with_sizes(x, lengths))


@settings(max_examples=25)
@given(LENGTHS)
def test_a_token_sees_its_own_row_and_no_other(lengths: list[int]) -> None:
    x, linear = drawn(sum(lengths), 16) / 4, TABLE.pack_linear(drawn(3 * WIDTH, 16, seed=1), drawn(3 * WIDTH, seed=2))
    batch = batch_of(lengths)
    qkv = TABLE.product(x, linear)
    weights = TABLE.attention_weights(qkv, linear, batch, NUM_HEADS)
    whole = (x @ drawn(3 * WIDTH, 16, seed=1).T + drawn(3 * WIDTH, seed=2)).view(-1, 3, NUM_HEADS, HEAD_DIM)
    seen = TABLE.attention(qkv, linear, batch, NUM_HEADS)
    for row, ours, weight in zip(rows_of(whole, lengths), rows_of(seen, lengths), weights, strict=True):
        query, key, value = row.permute(1, 2, 0, 3)
        expected = (query @ key.transpose(1, 2) / HEAD_DIM**0.5).softmax(dim=-1)
        assert (weight - expected).abs().max() < 1e-5
        assert (ours - (expected @ value).transpose(0, 1).reshape(-1, WIDTH)).abs().max() < 1e-5


@settings(max_examples=25)
@given(LENGTHS, st.booleans())
def test_rows_are_pooled_alone(lengths: list[int], normalise: bool) -> None:
    x, batch = drawn(sum(lengths), WIDTH), batch_of(lengths)
    pools: dict[Any, Any] = {
        "cls": lambda row: row[0],
        "mean": lambda row: row.sum(0) / len(row),
        "max": lambda row: row.max(0).values,
        "last": lambda row: row[-1],
    }
    for pooling, pool in pools.items():
        expected = torch.stack([pool(row) for row in rows_of(x, lengths)])
        if normalise:
            expected /= expected.norm(dim=1, keepdim=True)
        assert (TABLE.pool(x, batch, pooling, normalise=normalise) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("types", [None, 0, 1])
def test_embeddings_are_summed_and_normed_and_without_types_the_first_is_meant(types: int | None) -> None:
    lengths = [4, 1, 9]
    type_ids = None if types is None else torch.arange(14) % 2 * types
    tables = [drawn(50, WIDTH, seed=3), drawn(20, WIDTH, seed=4), drawn(2, WIDTH, seed=5)]
    norm, batch = norm_of(WIDTH), batch_of(lengths, type_ids)
    kinds = torch.zeros(14, dtype=torch.int64) if type_ids is None else type_ids
    total = tables[0][batch.token_ids] + tables[1][batch.positions]
    for with_types in (True, False):
        expected = total + tables[2][kinds] if with_types else total
        expected = (expected - expected.mean(1, keepdim=True)) / (expected.var(1, False, keepdim=True) + 1e-3).sqrt()
        embeddings = Embeddings(tables[0], tables[1], tables[2] if with_types else None, norm)
        out = torch.empty(14, WIDTH)
        assert TABLE.embed(batch, embeddings, out=out) is out
        assert (out - (expected * norm.weight + norm.bias)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
        ("gelu_tanh", lambda x: x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))),
        ("relu", lambda x: x.clamp_min(0)),
        ("tanh", torch.tanh),
    ],
)
def test_activations_follow_the_product_and_its_bias(activation: Any, function: Any) -> None:
    x, weight, bias = drawn(7, 12), drawn(20, 12, seed=1), drawn(20, seed=2)
    linear = TABLE.pack_linear(weight, bias)
    expected = function(x @ weight.T + bias)
    assert (TABLE.activate(TABLE.product(x, linear), linear, activation) - expected).abs().max() < 1e-5
    out = torch.empty(7, 20)
    assert (TABLE.activate(TABLE.product(x, linear, out=out), linear, activation) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("has_residual", [True, False])
def test_sums_are_normed_and_the_residual_stays(has_residual: bool) -> None:
    x, weight, bias, norm = drawn(7, 12), drawn(20, 12, seed=1), drawn(20, seed=2), norm_of(20)
    residual = drawn(7, 20, seed=6) + 1000 if has_residual else None
    kept = None if residual is None else residual.clone()
    linear = TABLE.pack_linear(weight, bias)
    total = (x @ weight.T + bias).double() + (0 if residual is None else residual)
    normed = (total - total.mean(1, keepdim=True)) / (total.var(1, False, keepdim=True) + 1e-3).sqrt()
    ours = TABLE.add_norm(TABLE.product(x, linear), linear, residual, norm)
    # A mean of a thousand leaves fp32 four digits behind the point, and no fewer.
    assert (ours - (normed * norm.weight + norm.bias)).abs().max() < (1e-3 if has_residual else 1e-5)
    assert residual is None or torch.equal(residual, kept)  # type: ignore[arg-type]


def test_a_batch_of_another_table_is_refused() -> None:
    batch = batch_of([2])
    stranger = EncoderBatch(batch.token_ids, batch.positions, None, batch.starts, batch.lengths)
    linear = TABLE.pack_linear(drawn(3 * WIDTH, 16), None)
    with pytest.raises(KernelError, match="another table"):
        TABLE.attention(TABLE.product(drawn(2, 16), linear), linear, stranger, NUM_HEADS)
