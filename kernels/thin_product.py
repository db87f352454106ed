"""Products of few tokens with a large weight, at the speed at which memory gives the weight.

``cuda/thin_product.cu`` holds the kernel, ``torch.nn.functional.linear`` is its oracle. It needs Hopper's bulk copies:
older GPUs, fp32 and more tokens than ``MOST_TOKENS`` are cuBLAS's.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load

#: Rows of x that the kernel takes, and up to which it is the choice for every shape measured.
MOST_TOKENS = 16
FEW_TOKENS = 8

_TOKEN_TILE = 8  # columns of one instruction of the tensor cores
_MOST_X_PIECES = 32
_PITCH_PAD_BYTES = 64
_BARRIER_BYTES = 512
_RESERVED_BYTES = 1024  # of shared memory, by CUDA, in each block


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a product is cut up.

    Attributes:
        tile: rows of the weight that a block sums up at once: 8, 16 or 32.
        piece: columns that one stage of the ring holds.
        stages: of the ring.
        warps: that multiply; one more copies.
        x_in_shared: a block keeps all of x in shared memory; otherwise it fetches x piece by piece.
        blocks: most blocks on a multiprocessor.
    """

    tile: int
    piece: int
    stages: int
    warps: int
    x_in_shared: bool
    blocks: int = 3

    def shared_bytes(self, num_tokens: int, in_features: int) -> int:
        """Shared memory of a block."""
        token_tiles = -(-num_tokens // _TOKEN_TILE)
        scratch = 2 * self.warps * -(-self.tile // 16) * token_tiles * 512
        ring = self.stages * self.tile * (2 * self.piece + _PITCH_PAD_BYTES)
        x = num_tokens * x_pitch(in_features) if self.x_in_shared else 0
        return _BARRIER_BYTES + scratch + ring + x


def x_pitch(in_features: int) -> int:
    """Bytes from one row of x to the next in shared memory: 64 past a multiple of 128, so that banks differ."""
    return -(-2 * in_features // 128) * 128 + _PITCH_PAD_BYTES


class ThinProduct:
    """``y = x W^T (+ bias) (+ residual)`` for one weight; a token's result does not depend on the tokens beside it.

    Args:
        weight: ``[out_features, in_features]``, bf16 or fp16, rows contiguous and 16-byte aligned, on a Hopper GPU;
            kept, not copied. No kernel may write it while products are in flight.
        bias: ``[out_features]`` of the same dtype, or None.

    Raises:
        KernelError: the weight is none that the kernel can read.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        if weight.dtype not in (torch.bfloat16, torch.float16):
            raise KernelError(f"a thin product takes bf16 or fp16, not {weight.dtype}")
        if weight.dim() != 2 or weight.stride(1) != 1 or weight.shape[1] % 8 or weight.stride(0) % 8:
            raise KernelError(f"a thin product wants rows of a multiple of 8 numbers, not {tuple(weight.shape)}")
        if weight.data_ptr() % 16 or not weight.is_cuda:
            raise KernelError("a thin product's weight lies on a GPU, at a multiple of 16 bytes")
        if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
            raise KernelError(f"a bias of {tuple(bias.shape)}, {bias.dtype} does not fit the weight")
        self.weight, self.bias = weight, bias
        self._device = open_device(weight.device.index)
        if not self._device.arch.startswith("sm_9"):
            raise KernelError(f"a thin product needs bulk copies (sm_90); this GPU is {self._device.arch}")

    def __call__(self, x: Tensor, out: Tensor, *, residual: Tensor | None = None, tiling: Tiling | None = None) -> None:
        """Multiply, on torch's current stream.

        Args:
            x: ``[num_tokens, in_features]``, 1 to ``MOST_TOKENS`` rows, contiguous each and 16-byte aligned.
            out: ``[num_tokens, out_features]``, rows contiguous; must not overlap ``x``.
            residual: like ``out``, and may be ``out`` itself; added after the product has been rounded, as two
                operations of torch would.
            tiling: default: what was measured to be the fastest (docs/bench/thin_product.md).

        Raises:
            KernelError: shapes, dtypes or layouts do not fit.
        """
        num_tokens, (out_features, in_features) = x.shape[0], self.weight.shape
        if not 1 <= num_tokens <= MOST_TOKENS or x.shape != (num_tokens, in_features):
            raise KernelError(f"x is {tuple(x.shape)}, not [1..{MOST_TOKENS}, {in_features}]")
        if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
            raise KernelError("x's rows are contiguous and begin at multiples of 16 bytes")
        for name, y in (("out", out), ("residual", out if residual is None else residual)):
            if y.shape != (num_tokens, out_features) or y.stride(1) != 1 or y.dtype != x.dtype:
                raise KernelError(f"{name} is {tuple(y.shape)}, {y.dtype}, not [{num_tokens}, {out_features}]")
        if x.dtype != self.weight.dtype:
            raise KernelError(f"x is {x.dtype}, the weight {self.weight.dtype}")
        chosen = tiling or choose(num_tokens, out_features, in_features, self._device.shared_bytes)
        if chosen.x_in_shared and in_features > _MOST_X_PIECES * chosen.piece:
            raise KernelError(f"{in_features} columns are more than {_MOST_X_PIECES} pieces of {chosen.piece}")
        shared = chosen.shared_bytes(num_tokens, in_features)
        if shared > self._device.shared_bytes:
            raise KernelError(f"{chosen} wants {shared} bytes of shared memory; there are {self._device.shared_bytes}")
        token_tiles = -(-num_tokens // _TOKEN_TILE)
        kernel = _kernel(x.device.index, x.dtype, token_tiles, chosen)
        num_sms = self._device.num_sms
        blocks_per_sm = (self._device.shared_bytes + _RESERVED_BYTES) // (shared + _RESERVED_BYTES)
        grid = min(-(-out_features // chosen.tile), num_sms * min(blocks_per_sm, chosen.blocks))
        num_tiles = out_features // (grid * chosen.tile)
        kernel(
            (grid, 1),
            ((chosen.warps + 1) * 32, 1, 1),
            *(out, x, self.weight, self.bias, residual),
            *(num_tokens, out_features, in_features),
            *(out.stride(0), x.stride(0), self.weight.stride(0), 0 if residual is None else residual.stride(0)),
            *(x_pitch(in_features), num_tiles, -(-(out_features - num_tiles * grid * chosen.tile) // grid)),
            shared_bytes=shared,
        )


@functools.cache
def choose(num_tokens: int, out_features: int, in_features: int, shared_bytes: int) -> Tiling:
    """Choose how to cut a product up, as measured on an H200 (docs/bench/thin_product.md).

    Args:
        num_tokens: rows of x.
        out_features: rows of the weight.
        in_features: columns of both.
        shared_bytes: the most that a block may have.
    """
    if in_features <= 2048:
        # A row is soon read: several small blocks hide each other's beginnings and ends; x fits the first-level cache.
        if out_features <= 2048:
            return Tiling(16, 1024, 2, 8, x_in_shared=False)
        return Tiling(16, 256 if out_features <= 16384 else 512, 4, 4, x_in_shared=False)
    if in_features < 4096:
        wanted = Tiling(16, 1024, 3, 8, x_in_shared=True)
    elif num_tokens <= 4 or out_features >= 65536:
        # More in flight than this slows memory down.
        wanted = Tiling(8, 1024, 4, 8, x_in_shared=True, blocks=1)
    else:
        wanted = Tiling(8, 2048, 2, 8, x_in_shared=True, blocks=1)
    if in_features <= 8192 and wanted.shared_bytes(num_tokens, in_features) <= shared_bytes:
        return wanted
    # x does not fit beside the ring. Taller tiles fetch it less often, but leave room for few sums.
    return Tiling(32, 1024, 3, 8, False) if num_tokens <= _TOKEN_TILE else Tiling(16, 1024, 2, 8, False)


def beats_cublas(num_tokens: int, out_features: int, in_features: int) -> bool:
    """Say whether a thin product, launched programmatically, was measured to be faster than cuBLAS at such a size.

    Launched plainly, a few sizes are within 4 % of cuBLAS, on either side (docs/bench/thin_product.md).
    """
    if num_tokens <= FEW_TOKENS:
        return True
    if num_tokens > MOST_TOKENS:
        return False
    return in_features <= 8192 and not 16384 < out_features < 65536


@functools.cache
def _kernel(index: int, dtype: torch.dtype, token_tiles: int, tiling: Tiling) -> Kernel:
    device = torch.device("cuda", index)
    return load(
        "thin_product",
        "thin_product",
        "PPPPPiiiqqqqiii",
        device,
        shared_bytes=open_device(index).shared_bytes,
        DTYPE=C_TYPES[dtype],
        TOKEN_TILES=token_tiles,
        TILE=tiling.tile,
        PIECE=tiling.piece,
        STAGES=tiling.stages,
        WARPS=tiling.warps,
        X_IN_SHARED=int(tiling.x_in_shared),
    )
