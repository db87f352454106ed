"""Products of few tokens with a large weight, at the speed at which memory gives the weight.

``cuda/thin_product.cu`` holds the kernel, ``torch.nn.functional.linear`` is its oracle. It needs Hopper's bulk copies:
older GPUs, fp32 and more tokens than ``MOST_TOKENS`` are cuBLAS's.
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load
from headrace.kernels.thin_choice import (
    MOST_BYTES,
    MOST_TOKENS,
    RESERVED_BYTES,
    TOKEN_TILE,
    Product,
    Tiling,
    choose,
    choose_norming,
    row_runs,
    x_pitch,
)


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm of x before a product.

    Attributes:
        weight: ``[in_features]``, of x's dtype; kept as a product's weight is.
        eps: added to the mean square.
    """

    weight: Tensor
    eps: float


class ThinProduct:
    """``y = x W^T (+ bias) (+ residual)`` for one weight; a token's result does not depend on the tokens beside it.

    Launches for one weight must follow each other, as on one stream: where tiles are dealt out they share a counter.

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
        # From the host: it is there before any stream's launch, whichever stream is torch's now.
        self._counter = torch.zeros(1, dtype=torch.int32).to(weight.device)

    def __call__(
        self,
        x: Tensor,
        out: Tensor,
        *,
        residual: Tensor | None = None,
        norm: Norm | None = None,
        gated: bool = False,
        tiling: Tiling | None = None,
    ) -> None:
        """Multiply, on torch's current stream.

        Args:
            x: ``[num_tokens, in_features]``, 1 to ``MOST_TOKENS`` rows, contiguous each and 16-byte aligned.
            out: ``[num_tokens, out_features]``, or half as wide if gated; rows contiguous; must not overlap ``x``.
            residual: like ``out``, and may be ``out`` itself; added after the product has been rounded, as two
                operations of torch would.
            norm: x is normed first, and rounded, as ``rms_norm`` would.
            gated: the weight's rows alternate, gate and up: what is written is ``silu(gate) * up`` of the rounded
                products.
            tiling: default: what was measured to be the fastest (docs/bench/thin_product.md).

        Raises:
            KernelError: shapes, dtypes or layouts do not fit.
        """
        self._check(x, out, residual, norm, gated)
        num_tokens, (out_features, in_features) = x.shape[0], self.weight.shape
        product = Product(num_tokens, out_features, in_features)
        chosen = _fitting(product, norm, tiling)
        shared = chosen.shared_bytes(product)
        if shared > MOST_BYTES:
            raise KernelError(f"{chosen} wants {shared} bytes of shared memory; there are {MOST_BYTES}")
        runs = 0 if norm is None else row_runs(in_features)
        held = 1 if norm is None else chosen.held_runs(product)
        token_tiles = -(-num_tokens // TOKEN_TILE)
        kernel = _kernel(x.device.index, x.dtype, token_tiles, _compiled(chosen), gated, runs, held)
        num_sms = self._device.num_sms
        blocks_per_sm = (MOST_BYTES + RESERVED_BYTES) // (shared + RESERVED_BYTES)
        grid = min(-(-out_features // chosen.tile), num_sms * min(blocks_per_sm, chosen.blocks))
        whole = chosen.whole_tiles(product, grid)
        left = out_features - whole * grid * chosen.tile
        # Rows of what is left over, a block; a gate stays with its up.
        unit = 2 if gated else 1
        rest = -(-left // (grid * unit)) * unit
        # Each block asks once in vain.
        last_ticket = -(-left // chosen.tile) + grid - 1
        kernel(
            (grid, 1),
            ((chosen.warps + 1) * 32, 1, 1),
            *(out, x, self.weight, self.bias, residual),
            *(num_tokens, out_features, in_features),
            *(out.stride(0), x.stride(0), self.weight.stride(0), 0 if residual is None else residual.stride(0)),
            *(x_pitch(in_features), whole, rest, self._counter, last_ticket),
            *((None, 0.0) if norm is None else (norm.weight, norm.eps)),
            shared_bytes=shared,
        )

    def _check(self, x: Tensor, out: Tensor, residual: Tensor | None, norm: Norm | None, gated: bool) -> None:
        num_tokens, (out_features, in_features) = x.shape[0], self.weight.shape
        if not 1 <= num_tokens <= MOST_TOKENS or x.shape != (num_tokens, in_features):
            raise KernelError(f"x is {tuple(x.shape)}, not [1..{MOST_TOKENS}, {in_features}]")
        if x.stride(1) != 1 or x.stride(0) % 8 or x.data_ptr() % 16:
            raise KernelError("x's rows are contiguous and begin at multiples of 16 bytes")
        width = out_features // 2 if gated else out_features
        for name, y in (("out", out), ("residual", out if residual is None else residual)):
            if y.shape != (num_tokens, width) or y.stride(1) != 1 or y.dtype != x.dtype:
                raise KernelError(f"{name} is {tuple(y.shape)}, {y.dtype}, not [{num_tokens}, {width}]")
        if x.dtype != self.weight.dtype:
            raise KernelError(f"x is {x.dtype}, the weight {self.weight.dtype}")
        if gated and (out_features % 2 or residual is not None):
            raise KernelError(f"a gated product has pairs of rows and no residual, not {out_features} rows")
        if norm is not None and (norm.weight.shape != (in_features,) or norm.weight.dtype != x.dtype):
            raise KernelError(f"the norm's weight is {tuple(norm.weight.shape)}, not [{in_features}]")


def _fitting(product: Product, norm: Norm | None, given: Tiling | None) -> Tiling:
    """The tiling that was given, or the fastest.

    Raises:
        KernelError: it cannot compute this product.
    """
    num_tokens, in_features = product.num_tokens, product.in_features
    chosen = given or (choose(product) if norm is None else choose_norming(product))
    if norm is not None and (chosen is None or not chosen.can_norm(product) or norm.weight.data_ptr() % 16):
        raise KernelError(f"{chosen} cannot norm {num_tokens} rows of {in_features}")
    if chosen is None or (norm is None and not chosen.can_wait_for_x(product)):
        raise KernelError(f"{chosen} cannot wait for {in_features} columns of x")
    return chosen


@functools.cache
def _compiled(tiling: Tiling) -> Tiling:
    """What of a tiling is compiled in: those that differ only in how they are launched share a kernel."""
    return replace(tiling, blocks=0, alone=False)


@functools.cache
def _kernel(
    index: int, dtype: torch.dtype, token_tiles: int, tiling: Tiling, gated: bool, row_runs: int, held: int
) -> Kernel:
    device = torch.device("cuda", index)
    return load(
        "thin_product",
        "thin_product",
        "PPPPPiiiqqqqiiiPIPf",
        device,
        shared_bytes=MOST_BYTES,
        DTYPE=C_TYPES[dtype],
        TOKEN_TILES=token_tiles,
        TILE=tiling.tile,
        PIECE=tiling.piece,
        STAGES=tiling.stages,
        WARPS=tiling.warps,
        X_IN_SHARED=int(tiling.x_in_shared),
        DEALT=int(tiling.dealt),
        GATED=int(gated),
        NORMED=int(row_runs > 0),
        ROW_RUNS=row_runs,
        HELD=held,
    )
