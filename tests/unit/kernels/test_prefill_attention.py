"""Prefill attention without a GPU: its reference, its arithmetic, and its CUDA source on fibers."""

import ctypes
import math
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.gpu.tolerance import assert_fair, poisoned
from tests.unit.kernels.emulation.build import build_prefill, compiler, pointer
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from headrace.errors import KernelError
from headrace.kernels import reference_attention as reference
from headrace.kernels.build import CUDA_DIR, Target
from headrace.kernels.decode_shape import HEAD_DIMS
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.prefill_shape import Block, PrefillShape, choose_block

# The most shared memory that a block may have: sm_86 and sm_89, sm_80, sm_90.
SHARED_BYTES = {"sm_86": 101376, "sm_80": 166912, "sm_90a": 232448}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Step:
    query: Tensor
    pages: KVPages
    query_starts: Tensor
    lengths: Tensor


def paged(
    rows: Sequence[tuple[int, int]], num_kv_heads: int, group: int, head_dim: int, dtype: torch.dtype, page_size: int
) -> Step:
    """Rows of queries and keys in pages of any order; NaN wherever no token may look."""
    counts = [-(-length // page_size) for _, length in rows]
    memory = torch.full((sum(counts) + 2, 2, num_kv_heads, page_size, head_dim), torch.nan, dtype=dtype)
    order = torch.randperm(memory.shape[0], dtype=torch.int32)
    table = torch.full((len(rows), max(counts) + 1), 2**30, dtype=torch.int32)
    for row, (begin, (_, length)) in enumerate(zip(accumulate([0, *counts]), rows, strict=False)):
        table[row, : counts[row]] = order[begin : begin + counts[row]]
        for key in range(length):
            memory[table[row, key // page_size], :, :, key % page_size] = torch.randn(2, num_kv_heads, head_dim).to(
                dtype
            )
    starts = [0, *accumulate(queries for queries, _ in rows)]
    wide = torch.randn(starts[-1], num_kv_heads * group + 2, head_dim).to(dtype)
    return Step(
        wide[:, : num_kv_heads * group],
        KVPages(memory[:, 0], memory[:, 1], table),
        torch.tensor(starts, dtype=torch.int32),
        torch.tensor([length for _, length in rows], dtype=torch.int32),
    )


# ---- the reference ---------------------------------------------------------------------------------------------------


@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), min_size=1, max_size=4),
    group=st.integers(1, 3),
    window=st.none() | st.integers(1, 30),
)
def test_the_reference_equals_attention_over_gathered_keys(
    rows: list[tuple[int, int]], group: int, window: int | None
) -> None:
    rows = [(queries, length + queries if length else 0) for queries, length in rows]
    step = paged(rows, 2, group, 8, torch.float64, 16)
    out = reference.prefill_attention(step.query, step.pages, step.query_starts, step.lengths, window=window)
    for row, (queries, length) in enumerate(rows):
        begin = int(step.query_starts[row])
        for i in range(queries):
            expected = torch.zeros(2 * group, 8, dtype=torch.float64)
            if length:
                last = length - queries + i
                seen = range(0 if window is None else max(last + 1 - window, 0), last + 1)
                where = [(int(step.pages.page_table[row, key // 16]), key % 16) for key in seen]
                keys, values = (
                    torch.stack([x[page, :, at] for page, at in where], dim=1)
                    for x in (step.pages.keys, step.pages.values)
                )
                expected = scaled_dot_product_attention(step.query[begin + i][:, None], keys, values, enable_gqa=True)[
                    :, 0
                ]
            torch.testing.assert_close(out[begin + i], expected)


# ---- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", SHARED_BYTES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_head_fits_every_gpu(head_dim: int, dtype: torch.dtype, arch: str) -> None:
    block = choose_block(PrefillShape(8, 4, head_dim, dtype, 8, 2048), SHARED_BYTES[arch], arch)
    assert block.shared_bytes(dtype, head_dim) + block.static_bytes <= SHARED_BYTES[arch]


def test_two_blocks_share_a_hopper_multiprocessor() -> None:
    shape, shared_bytes = PrefillShape(8, 4, 128, torch.bfloat16, 8, 2048), SHARED_BYTES["sm_90a"]
    assert choose_block(shape, shared_bytes, "sm_90a") == Block(rows=128, keys=64, warpgroups=True)
    assert choose_block(shape, shared_bytes, "sm_90") == Block(rows=128, keys=64)


@given(
    queries=st.lists(st.integers(0, 400), min_size=1, max_size=20), group=st.integers(1, 128), padding=st.integers(0, 9)
)
def test_there_are_blocks_for_any_cut_of_tokens_into_rows(queries: list[int], group: int, padding: int) -> None:
    block, total = Block(rows=128, keys=64), sum(queries) + padding
    needed = sum(-(-count * group // block.rows) for count in (*queries, padding))
    assert needed <= block.num_items(group, len(queries), total)


def test_what_the_kernels_cannot_do_is_refused() -> None:
    shape = PrefillShape(8, 4, 128, torch.bfloat16, 8, 2048)
    for wrong, word in (
        ({"head_dim": 72}, "head"),
        ({"group": 129}, "head"),
        ({"dtype": torch.float64}, "float64"),
        ({"page_size": 8}, "page"),
        ({"max_tokens": 0}, "nothing"),
    ):
        with pytest.raises(KernelError, match=word):
            replace(shape, **wrong)
    with pytest.raises(KernelError, match="does not fit"):
        choose_block(shape, 40000, "sm_80")


# ---- the CUDA source -------------------------------------------------------------------------------------------------


# The ones with the most registers; each takes seconds to compile.
SPECIALISATIONS = [
    ("sm_80", torch.float16, 128, None),
    ("sm_90a", torch.bfloat16, 128, None),
    ("sm_90a", torch.bfloat16, 128, Block(128, 64)),
    ("sm_90a", torch.float16, 64, None),
    ("sm_90a", torch.float16, 80, None),
    ("sm_90a", torch.bfloat16, 96, None),
    ("sm_90a", torch.bfloat16, 256, None),
    ("sm_80", torch.bfloat16, 256, None),
    ("sm_90a", torch.float32, 128, None),
    ("sm_90a", torch.bfloat16, 128, Block(128, 64, warpgroups=True, rotates=True)),
    ("sm_90a", torch.float16, 64, Block(128, 64, warpgroups=True, rotates=True)),
    ("sm_80", torch.bfloat16, 128, Block(128, 64, rotates=True)),
]


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize(("arch", "dtype", "head_dim", "block"), SPECIALISATIONS)
def test_specialisations_compile_and_spill_nothing(
    arch: str, dtype: torch.dtype, head_dim: int, block: Block | None, tmp_path: Path
) -> None:
    block = block or choose_block(PrefillShape(8, 4, head_dim, dtype, 8, 2048), SHARED_BYTES[arch], arch)
    target = Target.of("prefill_attention", arch, block.macros(dtype, head_dim))
    source, cubin = CUDA_DIR / "prefill_attention.cu", tmp_path / "prefill.cubin"
    command = ["nvcc", *target.flags, "-arch", arch, "-cubin", "-Xptxas", "-v", str(source), "-o", str(cubin)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in told
    # Else ptxas waits for each product of a group of warps before it begins the next.
    assert "serialized" not in told


class Emulated:
    """Prefill attention's kernels on fibers."""

    def __init__(self, library: ctypes.CDLL, block: Block) -> None:
        self._library = library
        self._block = block

    def attend(
        self,
        step: Step,
        *,
        window: int | None = None,
        only_last: bool = False,
        angles: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        query, pages, num_rows = step.query, step.pages, step.lengths.shape[0]
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads, page_size = pages.keys.shape[1:3]
        group = num_heads // num_kv_heads
        num_items = self._block.num_items(group, num_rows, min(num_rows, num_tokens) if only_last else num_tokens)
        plan, starts = (torch.full((size,), -7, dtype=torch.int32) for size in (8 * num_items, num_rows + 2))
        out = poisoned(query.contiguous())
        rows = (pointer(step.query_starts), pointer(step.lengths), num_rows, num_tokens)
        sizes = group, self._block.rows, num_items
        self._library.emulate_plan(pointer(plan), pointer(starts), *rows, *sizes, int(only_last))
        self._library.emulate_attention(
            *(num_items * num_kv_heads, pointer(out), pointer(query), pointer(pages.keys), pointer(pages.values)),
            *(pointer(pages.page_table), pointer(plan), num_kv_heads, group, 65536 // group + 1),
            *(pages.page_table.shape[1], page_size // 16, window or 0),
            *map(ctypes.c_longlong, (query.stride(0), *pages.keys.stride()[:2])),
            ctypes.c_float(head_dim**-0.5 * math.log2(math.e)),
            *((None, None) if angles is None else map(pointer, angles)),
        )
        return out


@pytest.fixture(
    scope="module",
    params=[
        (torch.bfloat16, 128, Block(128, 64)),
        (torch.bfloat16, 128, Block(128, 64, warpgroups=True)),
        (torch.float16, 80, Block(128, 64, warpgroups=True)),
        (torch.bfloat16, 96, Block(64, 64, warpgroups=True)),
        (torch.bfloat16, 256, Block(64, 64, 1, warpgroups=True)),
        (torch.float16, 80, Block(64, 64)),
        (torch.bfloat16, 256, Block(64, 32)),
        (torch.float32, 96, Block(64, 32)),
    ],
    ids=[
        *("bf16x128", "bf16x128_warpgroups", "fp16x80_warpgroups", "bf16x96_warpgroups", "bf16x256_warpgroups"),
        *("fp16x80", "bf16x256", "fp32x96"),
    ],
)
def emulated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Emulated, torch.dtype, int]:
    if compiler() is None:
        pytest.fail("the kernels' sources are run on this machine's CPU, which takes g++: install it")
    dtype, head_dim, block = request.param
    return Emulated(build_prefill(block, dtype, head_dim, tmp_path_factory.mktemp("prefill")), block), dtype, head_dim


@pytest.mark.parametrize(
    ("group", "page_size", "window", "rows"),
    [
        (4, 16, None, [(5, 70), (33, 33), (3, 0), (1, 130), (16, 64), (0, 0), (17, 65)]),
        (1, 16, None, [(63, 127), (64, 64), (65, 129), (130, 200)]),
        (7, 48, 37, [(1, 130), (33, 133), (1, 1)]),
        (2, 64, 64, [(70, 200), (1, 64), (2, 65)]),
        (71, 16, 1, [(2, 20)]),
    ],
)
def test_the_source_errs_as_little_as_torch(
    emulated: tuple[Emulated, torch.dtype, int],
    group: int,
    page_size: int,
    window: int | None,
    rows: list[tuple[int, int]],
) -> None:
    torch.manual_seed(0)
    attention, dtype, head_dim = emulated
    step = paged(rows, 2, group, head_dim, dtype, page_size)
    exact = KVPages(step.pages.keys.double(), step.pages.values.double(), step.pages.page_table)
    rest = (step.query_starts, step.lengths)
    truth = reference.prefill_attention(step.query.double(), exact, *rest, window=window)
    peer = reference.prefill_attention(step.query, step.pages, *rest, window=window)
    assert_fair(attention.attend(step, window=window), truth, peer)


def test_the_source_gives_a_token_the_same_bits_however_its_prompt_is_cut(
    emulated: tuple[Emulated, torch.dtype, int],
) -> None:
    torch.manual_seed(0)
    attention, dtype, head_dim = emulated
    step = paged([(150, 150)], 1, 3, head_dim, dtype, 16)
    for window in (None, 50):
        whole = attention.attend(step, window=window)
        for begin, end in ((0, 1), (1, 70), (70, 128), (128, 150)):
            part = replace(
                step,
                query=step.query[begin:end],
                query_starts=torch.tensor([0, end - begin], dtype=torch.int32),
                lengths=torch.tensor([end], dtype=torch.int32),
            )
            assert torch.equal(attention.attend(part, window=window), whole[begin:end])


@pytest.mark.parametrize("group", [3, 71])
@pytest.mark.parametrize("window", [None, 37])
def test_the_source_computes_rows_last_queries_alone_and_to_the_same_bits(
    emulated: tuple[Emulated, torch.dtype, int], group: int, window: int | None
) -> None:
    torch.manual_seed(0)
    attention, dtype, head_dim = emulated
    step = paged([(33, 90), (0, 0), (1, 130), (2, 2), (0, 9), (3, 0)], 1, group, head_dim, dtype, 16)
    # Behind the last row there are tokens that are no row's.
    step = replace(step, query=torch.cat((step.query, torch.randn_like(step.query[:7]))))
    whole, out = attention.attend(step, window=window), attention.attend(step, window=window, only_last=True)
    last = torch.tensor([32, 33, 35, 38])
    assert torch.equal(out[last], whole[last])
    others = torch.ones(len(out), dtype=torch.bool).index_fill_(0, last, False)
    assert others.sum() == 42
    assert out[others].isnan().all(), "nothing is written for others"


def test_the_source_looks_up_no_page_before_a_window(emulated: tuple[Emulated, torch.dtype, int]) -> None:
    attention, dtype, head_dim = emulated
    step = paged([(20, 200), (1, 130)], 1, 2, head_dim, dtype, 16)
    expected = attention.attend(step, window=33)
    step.pages.page_table[0, : (200 - 20 + 1 - 33) // 16] = 2**30
    step.pages.page_table[1, : (130 - 33) // 16] = 2**30
    assert torch.equal(attention.attend(step, window=33), expected)


def test_the_source_writes_zeros_behind_the_last_row(emulated: tuple[Emulated, torch.dtype, int]) -> None:
    attention, dtype, head_dim = emulated
    step = paged([(20, 40), (9, 9)], 1, 2, head_dim, dtype, 16)
    fewer = replace(step, query_starts=torch.tensor([0, 20, 25], dtype=torch.int32))
    fewer.lengths[1] = 5
    out = attention.attend(fewer)
    assert (out[25:] == 0).all()
    assert (out[:25] != 0).any(dim=2).all()


@pytest.mark.parametrize(
    ("dtype", "head_dim", "block"),
    [
        (torch.bfloat16, 128, Block(128, 64, warpgroups=True)),
        (torch.float16, 80, Block(64, 64)),
        (torch.float32, 96, Block(64, 32)),
    ],
    ids=["bf16x128_warpgroups", "fp16x80", "fp32x96"],
)
def test_queries_are_rotated_on_their_way_as_if_they_had_been_before(
    dtype: torch.dtype, head_dim: int, block: Block, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch.manual_seed(0)
    plain, attention = (
        Emulated(build_prefill(each, dtype, head_dim, tmp_path_factory.mktemp("rotated")), each)
        for each in (block, replace(block, rotates=True))
    )
    step = paged([(5, 70), (33, 33), (1, 130), (70, 65 + 70)], 2, 3, head_dim, dtype, 16)
    angles = torch.rand(step.query.shape[0], head_dim // 2) * 6
    cosines, sines = angles.cos(), angles.sin()
    first, second = step.query.double().chunk(2, dim=-1)
    cos, sin = cosines.double()[:, None], sines.double()[:, None]
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(dtype)
    expected = plain.attend(replace(step, query=rotated))
    found = attention.attend(step, angles=(cosines, sines))
    # A query is rounded to its dtype once, before or on its way: seldom otherwise.
    same = (found == expected).all(dim=-1).float().mean()
    assert same > 0.97 or dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=2e-2 if dtype != torch.float32 else 1e-5, rtol=0)
