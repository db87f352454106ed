"""Products whose result for a row does not depend on the rows beside it, nor on how many there are.

``cuda/fixed_product.cu`` holds the kernel, ``torch.nn.functional.linear`` is its oracle. cuBLAS chooses another kernel,
and with it another order of its sums, for another number of rows; this one sums every element in one chain. 16-bit
weights only.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES, Macro
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load

_ROW_BYTES = 128  # of a tile


@dataclass(frozen=True, slots=True)
class Tile:
    """What a block computes, and how; results do not depend on it.

    Attributes:
        tokens: rows of x.
        outputs: rows of the weight.
        token_warps: of a block, along its rows of x.
        output_warps: of a block, along its rows of the weight.
        stages: pieces of the way along a row that are in shared memory.
        blocks: on a multiprocessor.
    """

    tokens: int
    outputs: int
    token_warps: int
    output_warps: int
    stages: int
    blocks: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.token_warps * self.output_warps * 32

    @property
    def shared_bytes(self) -> int:
        """Of a block."""
        return self.stages * (self.tokens + self.outputs) * _ROW_BYTES

    def num_blocks(self, num_tokens: int, out_features: int) -> int:
        """Blocks of a product."""
        return -(-num_tokens // self.tokens) * -(-out_features // self.outputs)

    @property
    def macros(self) -> dict[str, Macro]:
        """What ``fixed_product.cu`` is compiled with."""
        return {
            "BLOCK_TOKENS": self.tokens,
            "BLOCK_OUTPUTS": self.outputs,
            "TOKEN_WARPS": self.token_warps,
            "OUTPUT_WARPS": self.output_warps,
            "STAGES": self.stages,
            "BLOCKS": self.blocks,
        }


#: Few tokens: narrow tiles, so that all multiprocessors read the weight.
FEW = (Tile(16, 32, 1, 2, 8, 4), Tile(32, 32, 1, 2, 6, 4), Tile(64, 32, 2, 2, 5, 3))
#: Many: wide ones, which read shared memory less often, as long as there are enough of them.
MANY = (Tile(128, 128, 2, 4, 3, 2), Tile(128, 64, 2, 2, 3, 2), Tile(64, 64, 2, 2, 4, 3))


def choose(num_tokens: int, out_features: int, num_sms: int) -> Tile:
    """Choose a tile by size alone.

    Args:
        num_tokens: rows of x.
        out_features: rows of the weight.
        num_sms: of the GPU.
    """
    for tile in FEW:
        if num_tokens <= tile.tokens:
            return tile
    for tile in MANY[:-1]:
        if num_tokens >= tile.tokens and tile.num_blocks(num_tokens, out_features) >= num_sms:
            return tile
    return MANY[-1]


def fixed_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None, *, tile: Tile | None = None
) -> Tensor:
    """Multiply, on torch's current stream.

    Args:
        x: bf16 or fp16 ``[num_tokens, in_features]``, rows contiguous and 16-byte aligned; ``in_features`` a multiple
            of 8.
        weight: ``[out_features, in_features]``, likewise; not written while products are in flight.
        bias: ``[out_features]`` of the same dtype, or None; added before the sum is rounded.
        out: ``[num_tokens, out_features]``, rows contiguous; default: a new tensor.
        tile: default: ``choose``.

    Returns:
        ``out``.

    Raises:
        KernelError: shapes, dtypes or layouts do not fit.
    """
    (num_tokens, in_features), (out_features, columns) = x.shape, weight.shape
    if x.dtype not in (torch.bfloat16, torch.float16) or weight.dtype != x.dtype:
        raise KernelError(f"a fixed product takes bf16 or fp16, not {x.dtype} and {weight.dtype}")
    if in_features != columns or in_features % 8:
        raise KernelError(f"x has {in_features} columns, the weight {columns}; both want the same multiple of 8")
    for name, matrix in (("x", x), ("weight", weight)):
        if matrix.stride(1) != 1 or matrix.stride(0) % 8 or matrix.data_ptr() % 16:
            raise KernelError(f"{name}'s rows are contiguous and begin at multiples of 16 bytes")
    if bias is not None and (bias.shape != (out_features,) or bias.dtype != x.dtype):
        raise KernelError(f"a bias of {tuple(bias.shape)}, {bias.dtype} does not fit {out_features} outputs")
    out = x.new_empty(num_tokens, out_features) if out is None else out
    if out.shape != (num_tokens, out_features) or out.stride(1) != 1 or out.dtype != x.dtype or out.data_ptr() % 4:
        raise KernelError(f"out is {tuple(out.shape)}, {out.dtype}, not [{num_tokens}, {out_features}]")
    index = x.get_device()
    tile = tile or choose(num_tokens, out_features, open_device(index).num_sms)
    _kernel(index, x.dtype, tile)(
        (tile.num_blocks(num_tokens, out_features),),
        (tile.threads,),
        *(out, x, weight, bias, num_tokens, out_features, in_features),
        *(out.stride(0), x.stride(0), weight.stride(0)),
        shared_bytes=tile.shared_bytes,
    )
    return out


@functools.cache
def _kernel(index: int, dtype: torch.dtype, tile: Tile) -> Kernel:
    return load(
        "fixed_product",
        "fixed_product",
        "PPPPiiiqqq",
        torch.device("cuda", index),
        shared_bytes=tile.shared_bytes,
        DTYPE=C_TYPES[dtype],
        **tile.macros,
    )
