"""Prefill attention by the bulk copy engine without a GPU: what it is chosen for, and its CUDA source on fibers."""

import ctypes
import math
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.gpu.tolerance import poisoned
from tests.unit.kernels.emulation.build import Map, build_prefill, build_prefill_ring, compiler, pointer
from tests.unit.kernels.test_prefill_attention import Emulated, Step, paged
from torch import Tensor

from headrace.kernels.build import CUDA_DIR, Target
from headrace.kernels.prefill_ring import LARGE, SMALL, Ring, choose_ring, rings_for
from headrace.kernels.prefill_shape import Block, PrefillShape

L8B = PrefillShape(8, 4, 128, torch.bfloat16, 64, 65536)
NUM_SMS, SHARED_BYTES = 132, 232448
BLOCK = Block(128, 64, warpgroups=True)


@pytest.mark.parametrize(
    ("num_tokens", "num_chunks", "expected"),
    [
        (8192, 8, LARGE),
        (8192, 64, LARGE),
        (2048, 2, LARGE),
        (512, 1, SMALL),
        (1088, 65, SMALL),
        (256, 1, None),
        (1088, 300, None),
    ],
)
def test_prompts_take_the_ring_that_was_measured_to_be_the_fastest(
    num_tokens: int, num_chunks: int, expected: Ring | None
) -> None:
    assert choose_ring(L8B, num_tokens, num_chunks, NUM_SMS) == expected


def test_every_ring_fits_a_multiprocessor() -> None:
    rings = rings_for(L8B, "sm_90a")
    assert rings
    assert all(ring.shared_bytes(L8B.dtype, L8B.head_dim) <= SHARED_BYTES for ring in rings)


@given(
    queries=st.lists(st.integers(0, 400), min_size=1, max_size=20), group=st.integers(1, 128), padding=st.integers(0, 9)
)
def test_there_are_items_for_any_cut_of_tokens_into_rows(queries: list[int], group: int, padding: int) -> None:
    total = sum(queries) + padding
    for ring in rings_for(L8B, "sm_90a"):
        needed = sum(-(-count * group // ring.rows) for count in (*queries, padding))
        assert needed <= ring.num_items(group, len(queries), total)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_other_gpus_and_other_heads_take_none(arch: str) -> None:
    assert not rings_for(L8B, arch)
    for other in (replace(L8B, dtype=torch.float32), replace(L8B, head_dim=256), replace(L8B, head_dim=80)):
        assert not rings_for(other, "sm_90a")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("ring", [LARGE, SMALL], ids=["large", "small"])
@pytest.mark.parametrize(("dtype", "rotates"), [(torch.bfloat16, True), (torch.float16, False)])
def test_it_compiles_and_spills_nothing(ring: Ring, dtype: torch.dtype, rotates: bool, tmp_path: Path) -> None:
    target = Target.of("prefill_ring", "sm_90a", replace(ring, rotates=rotates).macros(dtype, 128))
    source, cubin = CUDA_DIR / "prefill_ring.cu", tmp_path / "ring.cubin"
    command = ["nvcc", *target.flags, "-arch", "sm_90a", "-cubin", "-Xptxas", "-v", str(source), "-o", str(cubin)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in told
    # Else ptxas waits for each product of a group of warps before it begins the next.
    assert "serialized" not in told


@dataclass(frozen=True, slots=True)
class EmulatedRing:
    """The kernel and its plan on fibers."""

    library: ctypes.CDLL
    ring: Ring

    def attend(
        self,
        step: Step,
        *,
        window: int | None = None,
        only_last: bool = False,
        angles: tuple[Tensor, Tensor] | None = None,
        chance: int = 0,
    ) -> Tensor:
        query, pages, num_rows = step.query, step.pages, step.lengths.shape[0]
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads, page_size = pages.keys.shape[1:3]
        group = num_heads // num_kv_heads
        num_items = self.ring.num_items(group, num_rows, min(num_rows, num_tokens) if only_last else num_tokens)
        plan, starts = (torch.full((size,), -7, dtype=torch.int32) for size in (8 * num_items, num_rows + 2))
        out = poisoned(query.contiguous())
        rows = (pointer(step.query_starts), pointer(step.lengths), num_rows, num_tokens)
        self.library.emulate_plan(
            pointer(plan), pointer(starts), *rows, group, self.ring.rows, num_items, int(only_last)
        )
        keys, values = _rows(pages.keys), _rows(pages.values)
        for again in range(2):  # what the first launch counts, the second one finds as it was
            out.fill_(torch.nan)
            self.library.emulate_attention(
                *(2, pointer(out), pointer(query), pointer(pages.page_table), pointer(plan)),
                *((None, None) if angles is None else map(pointer, angles)),
                *(ctypes.byref(Map.of(keys, 16)), ctypes.byref(Map.of(values, 16)), pointer(values)),
                *(num_kv_heads, group, 65536 // group + 1, pages.page_table.shape[1], page_size // 16),
                *(window or 0, num_items, *(stride // head_dim for stride in pages.keys.stride()[:2])),
                ctypes.c_longlong(query.stride(0)),
                ctypes.c_float(head_dim**-0.5 * math.log2(math.e)),
                chance + again,
            )
        return out


def _rows(pages: Tensor) -> Tensor:
    """Keys or values from the first to the last as rows, whatever lies between them."""
    num_pages, num_heads, page_size, head_dim = pages.shape
    behind = (num_pages - 1) * pages.stride(0) + (num_heads - 1) * pages.stride(1)
    return pages.as_strided((behind // head_dim + page_size, head_dim), (head_dim, 1))


@pytest.fixture(scope="module", params=[LARGE, SMALL], ids=["large", "small"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[EmulatedRing, Emulated]:
    if compiler() is None:
        pytest.fail("the kernels' sources are run on this machine's CPU, which takes g++: install it")
    ring: Ring = request.param
    library = build_prefill_ring(ring.macros(torch.bfloat16, 128), tmp_path_factory.mktemp("ring"))
    assert library.shared_bytes() == ring.shared_bytes(torch.bfloat16, 128)
    other = build_prefill(BLOCK, torch.bfloat16, 128, tmp_path_factory.mktemp("prefill"))
    return EmulatedRing(library, ring), Emulated(other, BLOCK)


@pytest.mark.parametrize(
    ("group", "page_size", "window", "rows"),
    [
        (4, 16, None, [(5, 70), (33, 33), (3, 0), (1, 130), (16, 64), (0, 0), (17, 65)]),
        (4, 16, None, [(100, 600)]),
        (1, 16, None, [(63, 127), (64, 64), (65, 129), (130, 200)]),
        (7, 48, 37, [(1, 130), (33, 133), (1, 1)]),
        (2, 64, 64, [(70, 200), (1, 64), (2, 65)]),
        (71, 16, 1, [(2, 20)]),
    ],
)
def test_it_gives_the_other_kernels_bits(
    both: tuple[EmulatedRing, Emulated], group: int, page_size: int, window: int | None, rows: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    ring, other = both
    step = paged(rows, 2, group, 128, torch.bfloat16, page_size)
    expected = other.attend(step, window=window)
    for chance in range(2):
        assert torch.equal(ring.attend(step, window=window, chance=chance), expected)


@pytest.mark.parametrize("group", [3, 71])
@pytest.mark.parametrize("window", [None, 37])
def test_rows_last_queries_alone_have_the_same_bits(
    both: tuple[EmulatedRing, Emulated], group: int, window: int | None
) -> None:
    torch.manual_seed(0)
    ring, other = both
    step = paged([(33, 90), (0, 0), (1, 130), (2, 2), (0, 9), (3, 0)], 1, group, 128, torch.bfloat16, 16)
    step = replace(step, query=torch.cat((step.query, torch.randn_like(step.query[:7]))))
    whole, out = other.attend(step, window=window), ring.attend(step, window=window, only_last=True)
    last = torch.tensor([32, 33, 35, 38])
    assert torch.equal(out[last], whole[last])
    others = torch.ones(len(out), dtype=torch.bool).index_fill_(0, last, False)
    assert out[others].isnan().all(), "nothing is written for others"


def test_it_looks_up_no_page_before_a_window(both: tuple[EmulatedRing, Emulated]) -> None:
    ring, other = both
    step = paged([(20, 200), (1, 130)], 1, 2, 128, torch.bfloat16, 16)
    expected = other.attend(step, window=33)
    step.pages.page_table[0, : (200 - 20 + 1 - 33) // 16] = 2**30
    step.pages.page_table[1, : (130 - 33) // 16] = 2**30
    assert torch.equal(ring.attend(step, window=33), expected)


def test_it_writes_zeros_behind_the_last_row(both: tuple[EmulatedRing, Emulated]) -> None:
    ring, other = both
    step = paged([(20, 40), (9, 9)], 1, 2, 128, torch.bfloat16, 16)
    fewer = replace(step, query_starts=torch.tensor([0, 20, 25], dtype=torch.int32))
    fewer.lengths[1] = 5
    out = ring.attend(fewer)
    assert torch.equal(out, other.attend(fewer))
    assert (out[25:] == 0).all()


def test_it_rotates_queries_to_the_other_kernels_bits(tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.manual_seed(0)
    ring, block = replace(LARGE, rotates=True), replace(BLOCK, rotates=True)
    library = build_prefill_ring(ring.macros(torch.float16, 128), tmp_path_factory.mktemp("rotating"))
    other = build_prefill(block, torch.float16, 128, tmp_path_factory.mktemp("other"))
    step = paged([(5, 70), (33, 33), (1, 130), (70, 65 + 70)], 2, 3, 128, torch.float16, 16)
    angles = torch.rand(step.query.shape[0], 64) * 6
    tables = angles.cos(), angles.sin()
    expected = Emulated(other, block).attend(step, angles=tables)
    assert torch.equal(EmulatedRing(library, ring).attend(step, angles=tables), expected)
