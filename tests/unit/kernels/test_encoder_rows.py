"""What encoders' memory-bound kernels make of rows, without a GPU: their CUDA sources on fibers."""

import ctypes
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from tests.gpu.tolerance import poisoned
from tests.unit.kernels.emulation.build import build_encoder_embedding, build_pooling, compiler, pointer
from torch import Tensor
from torch.nn import functional

from headrace.kernels.build import C_TYPES
from headrace.kernels.encoder_embedding import plan_tokens
from headrace.kernels.encoder_table import Pooling
from headrace.kernels.pooling import block_threads
from headrace.kernels.rows import vector


@pytest.fixture(scope="module", autouse=True)
def _can_compile() -> None:
    assert compiler() is not None, "this test compiles CUDA sources for the CPU: install g++"


# A warp a row, with lanes that have nothing; elements one by one; a block a row.
@pytest.mark.parametrize(
    ("width", "dtype"), [(300, torch.bfloat16), (129, torch.float32), (2304, torch.float16)], ids=str
)
def test_blocks_go_on_to_further_tokens_and_unknown_ids_add_nothing(
    width: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    num_tokens, sizes = 23, (50, 30, 2)
    plan = plan_tokens(width, 4096, dtype.itemsize, 132)
    library = build_encoder_embedding({"DTYPE": C_TYPES[dtype], **plan.macros}, tmp_path)
    tables = [(8 + torch.randn(size, width)).to(dtype) for size in sizes]
    weight, bias = torch.randn(2, width).to(dtype)
    ids = [torch.randint(size, (num_tokens,)) for size in sizes]
    ids[0][3], ids[0][4], ids[1][5] = -1, 50, 30
    for type_ids in (ids[2], None):
        x = torch.zeros(num_tokens, width, dtype=torch.float64)
        for table, own in zip(
            tables, (*ids[:2], torch.zeros_like(ids[2]) if type_ids is None else type_ids), strict=True
        ):
            known = (own >= 0) & (own < len(table))
            x[known] += table[own[known]].double()
        expected = functional.layer_norm(x, (width,), weight.double(), bias.double(), 1e-6)
        out = poisoned(torch.empty(num_tokens, width, dtype=dtype))
        library.emulate_embedding(
            2,
            *(pointer(each) for each in (out, ids[0], ids[1])),
            None if type_ids is None else pointer(type_ids),
            *(pointer(each) for each in (*tables, weight, bias)),
            ctypes.c_longlong(num_tokens),
            *(*sizes, width, ctypes.c_float(1e-6)),
        )
        error = max(torch.finfo(dtype).eps, 1e-5)
        torch.testing.assert_close(out.double(), expected, atol=error, rtol=error)


def _pooled(rows: Tensor, pooling: Pooling) -> Tensor:
    if not len(rows):
        return rows.new_zeros(rows.shape[1])
    return {"cls": rows[0], "last": rows[-1], "mean": rows.mean(0), "max": rows.amax(0)}[pooling]


# A token wider than a block; elements one by one; tokens that fill a thread's turns, and that do not.
@pytest.mark.parametrize(
    ("width", "dtype", "code", "pooling"),
    [
        (96, torch.bfloat16, 0, "cls"),
        (96, torch.bfloat16, 1, "last"),
        (96, torch.bfloat16, 2, "mean"),
        (1200, torch.float32, 2, "mean"),
        (31, torch.float16, 3, "max"),
    ],
    ids=str,
)
def test_every_token_of_a_row_is_pooled_once(
    width: int, dtype: torch.dtype, code: int, pooling: Pooling, tmp_path: Path
) -> None:
    lengths, vec = [1, 5, 0, 80, 33, 64], vector(width, dtype.itemsize)
    macros = {
        "VEC": vec,
        "THREADS": block_threads(width // vec, 64),
        "AHEAD": 4,
        "POOLING": code,
        "NORMALISE": int(code > 1),
    }
    library = build_pooling({"DTYPE": C_TYPES[dtype], **macros}, tmp_path)
    x = (torch.randn(sum(lengths), width) - 3).to(dtype)
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    out = torch.full((len(lengths), width), torch.nan)
    library.emulate_pooling(len(lengths), pointer(out), pointer(x), pointer(starts), width)
    expected = torch.stack([_pooled(rows, pooling) for rows in torch.split_with_sizes(x.double(), lengths)])
    expected = functional.normalize(expected) if code > 1 else expected
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)
