"""What an encoder computes between two products."""

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned, up
from torch import Tensor
from torch.nn import functional

from headrace.errors import KernelError
from headrace.kernels.encoder_attention import HEAD_DIMS, encoder_attention, most_items, plan_items
from headrace.kernels.encoder_embedding import encoder_embedding
from headrace.kernels.encoder_table import Embeddings, Norm, Pooling
from headrace.kernels.pooling import pool

LENGTHS: list[list[int]] = [
    [1],
    [63, 64, 65, 1, 128, 129, 2],
    [700, 1, 2048, 130],
    [1 + 37 * row % 90 for row in range(200)],
]
NUM_HEADS = 3


def attended(qkv: Tensor, bias: Tensor | None, lengths: Sequence[int]) -> Tensor:
    """What torch makes of it, row by row."""
    qkv = qkv if bias is None else qkv + bias
    rows = []
    for row in torch.split_with_sizes(qkv, list(lengths)):
        heads = row.view(row.shape[0], 3, NUM_HEADS, -1).permute(1, 2, 0, 3)
        scores = (heads[0] @ heads[1].transpose(1, 2)) * heads[0].shape[2] ** -0.5
        rows.append((scores.softmax(dim=-1) @ heads[2]).transpose(0, 1).flatten(1))
    return torch.cat(rows)


@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)}rows")
@pytest.mark.parametrize("head_dim", [*HEAD_DIMS, 8, 48, 120])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_attention_errs_as_little_as_torch(
    device: torch.device, dtype: torch.dtype, head_dim: int, lengths: list[int], *, biased: bool
) -> None:
    # Given rows with tokens behind them that no row may see, and items that are none
    num_tokens = sum(lengths)
    wide = torch.full((num_tokens + 3, 3 * NUM_HEADS * head_dim), torch.nan, device=device, dtype=dtype)
    wide[:num_tokens] = torch.randn(num_tokens, wide.shape[1], device=device)
    qkv, bias = wide[:num_tokens], torch.randn(wide.shape[1], device=device).to(dtype) if biased else None
    items = torch.from_numpy(plan_items(lengths, most_items(len(lengths), num_tokens) + 2)).to(device)
    truth, peer = attended(qkv.double(), up(bias), lengths), attended(qkv, bias, lengths)
    # When they attend
    out = poisoned(wide[:, : NUM_HEADS * head_dim].contiguous())
    encoder_attention(wide, bias, items, NUM_HEADS, out=out)
    # Then only they are written
    assert_fair(out[:num_tokens], truth, peer)
    assert out[num_tokens:].isnan().all()


def test_a_row_does_not_depend_on_its_neighbours(device: torch.device) -> None:
    rows = [torch.randn(length, 3 * NUM_HEADS * 64, device=device, dtype=torch.float16) for length in (70, 200, 9)]

    def attend(chosen: list[Tensor]) -> Tensor:
        items = torch.from_numpy(plan_items([row.shape[0] for row in chosen])).to(device)
        return encoder_attention(torch.cat(chosen), None, items, NUM_HEADS)

    assert torch.equal(attend(rows), torch.cat([attend([row]) for row in rows]))


def test_heads_of_other_sizes_are_refused(device: torch.device) -> None:
    items = torch.from_numpy(plan_items([5])).to(device)
    with pytest.raises(KernelError, match="no attention for 3 heads"):
        encoder_attention(torch.randn(5, 9 * 26, device=device), None, items, 3)


@pytest.mark.parametrize("width", [384, 768, 129, 2304])
@pytest.mark.parametrize("num_tokens", [1, 3000, 9001])
@pytest.mark.parametrize("types", ["none", "first", "any"])
def test_embeddings_err_as_little_as_torch(
    device: torch.device, dtype: torch.dtype, width: int, num_tokens: int, types: str
) -> None:
    def table(num_rows: int, mean: float = 0.0) -> Tensor:
        return (mean + torch.randn(num_rows, width, device=device)).to(dtype)

    # A large mean would leave nothing of a variance that is not taken around it.
    embeddings = Embeddings(
        table(500, mean=50.0), table(90), None if types == "none" else table(2), Norm(table(1)[0], table(1)[0], 1e-12)
    )
    ids = [torch.randint(high, (num_tokens,), device=device) for high in (500, 90, 2)]
    type_ids = ids[2] if types == "any" else None
    exact = Embeddings(
        embeddings.words.double(),
        embeddings.positions.double(),
        up(embeddings.types),
        Norm(embeddings.norm.weight.double(), embeddings.norm.bias.double(), 1e-12),
    )

    def looked_up(tables: Embeddings) -> Tensor:
        x = tables.words[ids[0]] + tables.positions[ids[1]]
        if tables.types is not None:
            x = x + tables.types[torch.zeros_like(ids[2]) if type_ids is None else type_ids]
        return functional.layer_norm(x, (width,), tables.norm.weight, tables.norm.bias, tables.norm.eps)

    out = encoder_embedding(ids[0], ids[1], type_ids, embeddings, out=poisoned(table(num_tokens)))
    assert_fair(out, looked_up(exact), looked_up(embeddings))


@pytest.mark.parametrize(
    ("pooling", "normalise"), [("cls", False), ("last", True), ("mean", True), ("mean", False), ("max", False)]
)
@pytest.mark.parametrize("width", [768, 31, 9000])
def test_pooling_equals_torch(
    device: torch.device, dtype: torch.dtype, width: int, pooling: Pooling, *, normalise: bool
) -> None:
    lengths = [1, 5, 0, 300, 64]
    x = torch.randn(sum(lengths), width, device=device).to(dtype)
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    made = pool(x, starts, pooling, normalise=normalise, out=torch.full((5, width), torch.nan, device=device))
    for row, ours in zip(torch.split_with_sizes(x.double(), lengths), made, strict=True):
        expected = torch.zeros(width, device=device, dtype=torch.float64)
        if len(row):
            expected = {"cls": row[0], "last": row[-1], "mean": row.mean(0), "max": row.amax(0)}[pooling]
        expected = functional.normalize(expected, dim=0) if normalise else expected
        torch.testing.assert_close(ours, expected.float(), atol=1e-6, rtol=1e-5)
