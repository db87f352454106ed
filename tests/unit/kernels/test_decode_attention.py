"""Decode attention without a GPU: how blocks read, and whether its source compiles into registers."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from headrace.kernels.build import CUDA_DIR, Macro, Target
from headrace.kernels.decode_shape import (
    HEAD_DIMS,
    DecodeShape,
    Ring,
    choose_fused_ring,
    choose_ring,
    fused_rings,
    plain_rings,
)

SHARED_BYTES, NUM_SMS = 232448, 132  # of an H200
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def shape(
    head_dim: int = 128, group: int = 4, dtype: torch.dtype = torch.bfloat16, num_kv_heads: int = 8
) -> DecodeShape:
    return DecodeShape(num_kv_heads, group, head_dim, dtype, 256, 64)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_head_fits(head_dim: int, dtype: torch.dtype) -> None:
    for group in (1, 4, 16):
        of = shape(head_dim, group, dtype)
        for rows in (1, 256):
            assert choose_ring(of, rows, SHARED_BYTES, NUM_SMS).shared_bytes(of) <= SHARED_BYTES
        fused = choose_fused_ring(of, 1, SHARED_BYTES, NUM_SMS)
        assert fused is not None
        assert fused.shared_bytes(of, fused=True) <= SHARED_BYTES


def test_blocks_are_as_many_as_registers_and_memory_allow() -> None:
    assert choose_ring(shape(), 256, SHARED_BYTES, NUM_SMS) == Ring(4, 2, least_blocks=3)
    assert choose_ring(shape(head_dim=256), 256, SHARED_BYTES, NUM_SMS) == Ring(4, 1)
    # Keys and values are not fetched apart in one launch with what is before attention.
    assert choose_ring(shape(head_dim=256), 256, SHARED_BYTES, NUM_SMS, fused=True).stages > 1
    assert choose_ring(shape(group=16, num_kv_heads=2), 256, SHARED_BYTES, NUM_SMS) == Ring(4, 2)
    for rows in (1, 256):
        assert choose_ring(shape(64, 16), rows, SHARED_BYTES, NUM_SMS).least_blocks == 3


def test_few_rows_of_large_groups_are_cut_into_few_parts() -> None:
    of = shape(group=16, num_kv_heads=2)
    assert choose_ring(of, 66, SHARED_BYTES, NUM_SMS) == Ring(8, 2)
    assert choose_ring(of, 67, SHARED_BYTES, NUM_SMS) == Ring(4, 2)
    assert plain_rings(of, SHARED_BYTES, NUM_SMS) == {Ring(8, 2), Ring(4, 2)}
    assert plain_rings(shape(), SHARED_BYTES, NUM_SMS) == {Ring(4, 2, least_blocks=3)}


def test_few_items_are_read_by_many_warps_and_more_by_several_blocks() -> None:
    assert choose_fused_ring(shape(), 16, SHARED_BYTES, NUM_SMS) == Ring(8, 2)
    assert choose_fused_ring(shape(), 64, SHARED_BYTES, NUM_SMS) == Ring(2, 3, least_blocks=4)
    # Two an SM, or more than run at once: two launches.
    assert choose_fused_ring(shape(), 32, SHARED_BYTES, NUM_SMS) is None
    assert choose_fused_ring(shape(), 67, SHARED_BYTES, NUM_SMS) is None
    assert fused_rings(shape(), SHARED_BYTES, NUM_SMS) == {Ring(8, 2), Ring(2, 3, least_blocks=4)}
    # Items count, and not rows.
    assert choose_fused_ring(shape(num_kv_heads=2), 64, SHARED_BYTES, NUM_SMS) == Ring(8, 2)
    assert choose_fused_ring(shape(num_kv_heads=32), 16, SHARED_BYTES, NUM_SMS) == Ring(2, 3, least_blocks=4)


PLAIN: Mapping[str, Macro] = {"FUSED": 0}
FUSED: Mapping[str, Macro] = {
    "FUSED": 1, "ROTARY_DIM": 128, "INTERLEAVED": 0, "NORMED": 1, "VEC": 8, "LANES": 8
}  # fmt: skip


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize(
    ("head_dim", "group", "ring", "more"),
    [
        (128, 2, Ring(4, 2, least_blocks=3), PLAIN),
        (128, 4, Ring(4, 2, least_blocks=3), PLAIN),
        (64, 16, Ring(4, 2, least_blocks=3), PLAIN),
        (128, 16, Ring(4, 2), PLAIN),
        (128, 16, Ring(8, 2), PLAIN),
        (256, 4, Ring(4, 1), PLAIN),
        (128, 2, Ring(8, 2), FUSED),
        (128, 4, Ring(8, 2), FUSED),
        (128, 2, Ring(2, 3, least_blocks=4), FUSED),
        (128, 4, Ring(2, 3, least_blocks=4), FUSED),
    ],
)
def test_specialisations_compile_and_spill_nothing(
    head_dim: int, group: int, ring: Ring, more: Mapping[str, Macro], tmp_path: Path
) -> None:
    macros: dict[str, Macro] = {
        **more,
        "DTYPE": "__nv_bfloat16",
        "IS_FP32": 0,
        "HEAD_DIM": head_dim,
        "GROUP": group,
        "WARPS": ring.warps,
        "STAGES": ring.stages,
        "BLOCKS": ring.least_blocks,
    }
    target = Target.of("decode_attention", "sm_90a", macros)
    source, cubin = CUDA_DIR / "decode_attention.cu", tmp_path / "decode.cubin"
    command = ["nvcc", *target.flags, "-arch", "sm_90a", "-cubin", "-Xptxas", "-v", str(source), "-o", str(cubin)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in told
