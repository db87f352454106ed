"""Products of some tokens with a large weight: more than are thin, and fewer than make cuBLAS's own tiles full.

``cuda/middle_product.cu`` holds the kernel, ``torch.nn.functional.linear`` is its oracle. It needs Hopper.
"""

import functools

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES
from headrace.kernels.hopper_operands import device_of_weight, require_rows
from headrace.kernels.launch import Kernel, load
from headrace.kernels.middle_choice import MOST_TOKENS, Tiling, choose, is_best, num_groups, takes, x_rows
from headrace.kernels.tensor_map import tensor_map
from headrace.kernels.thin_choice import FEW_TOKENS, MOST_BYTES, Product

_WARP = 32


class MiddleProduct:
    """``y = x W^T (+ bias) (+ residual)`` for one weight; a token's result does not depend on the tokens beside it.

    Its bits depend on the tiling's number of splits, and on nothing else of how the product is cut up.

    Args:
        weight: ``[out_features, in_features]``, bf16 or fp16, rows contiguous and 16-byte aligned, multiples of 8 of
            both, on a Hopper GPU; kept, not copied. No kernel may write it while products are in flight.
        bias: ``[out_features]`` of the same dtype, contiguous, or None.

    Raises:
        KernelError: the weight is none that the kernel can read.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self._device = device_of_weight(weight, bias, "a middle product")

    def load(self, *, gated: bool) -> None:
        """Compile what products with this weight take, for all numbers of tokens for which they are the fastest.

        Args:
            gated: as they will be.
        """
        _load(self._device.index, self._device.num_sms, self.weight.dtype, *self.weight.shape, gated)

    def __call__(
        self,
        x: Tensor,
        out: Tensor,
        *,
        residual: Tensor | None = None,
        gated: bool = False,
        tiling: Tiling | None = None,
    ) -> None:
        """Multiply, on torch's current stream.

        Args:
            x: ``[num_tokens, in_features]``, 1 to ``MOST_TOKENS`` rows, contiguous each and 16-byte aligned.
            out: ``[num_tokens, out_features]``, or half as wide if gated; rows contiguous and 16-byte aligned; must not
                overlap ``x``.
            residual: like ``out``, and may be ``out`` itself; added after the product has been rounded, as two
                operations of torch would.
            gated: the weight's rows alternate, gate and up: what is written is ``silu(gate) * up`` of the rounded
                products.
            tiling: default: what was measured to be the fastest.

        Raises:
            KernelError: shapes, dtypes or layouts do not fit.
        """
        num_tokens, (out_features, in_features) = x.shape[0], self.weight.shape
        product = Product(num_tokens, out_features, in_features)
        if x.shape != (num_tokens, in_features) or not 1 <= num_tokens <= MOST_TOKENS:
            raise KernelError(f"x is {tuple(x.shape)}, not [1..{MOST_TOKENS}, {in_features}]")
        if not takes(product, gated=gated) or (gated and residual is not None):
            raise KernelError(f"a gated product has eights of pairs and no residual, not {out_features} rows")
        width = out_features // 2 if gated else out_features
        require_rows("x", x, (num_tokens, in_features), self.weight.dtype)
        require_rows("out", out, (num_tokens, width), x.dtype)
        if residual is not None:
            require_rows("residual", residual, (num_tokens, width), x.dtype)
        chosen = tiling or choose(product, self._device.num_sms)
        if not chosen.fits(product):
            raise KernelError(f"{chosen} does not cut up {product}")
        num_tiles = chosen.num_tiles(product)
        # Where blocks share columns, their sums need the ring's end: each has one tile.
        most = self._device.num_sms * chosen.blocks(product)
        clusters = min(num_tiles, most) if chosen.splits == 1 else num_tiles
        groups = num_groups(product)
        kernel = _kernel(x.device.index, x.dtype, chosen.rows, chosen.splits, groups, gated)
        kernel(
            (clusters * chosen.splits, 1),
            ((4 * groups + 1) * _WARP, 1, 1),
            *(out, self.bias, residual),
            *(out.stride(0), 0 if residual is None else residual.stride(0), num_tokens, out_features),
            *(tensor_map(self.weight, chosen.rows), tensor_map(x, x_rows(product))),
            *(chosen.num_steps(product), num_tiles, chosen.stages, x_rows(product)),
            shared_bytes=chosen.shared_bytes(product),
        )


@functools.cache
def _load(index: int, num_sms: int, dtype: torch.dtype, out_features: int, in_features: int, gated: bool) -> None:
    for num_tokens in range(FEW_TOKENS + 1, MOST_TOKENS + 1):
        product = Product(num_tokens, out_features, in_features)
        if is_best(product, gated=gated):
            chosen = choose(product, num_sms)
            _kernel(index, dtype, chosen.rows, chosen.splits, num_groups(product), gated)


@functools.cache
def _kernel(index: int, dtype: torch.dtype, rows: int, splits: int, groups: int, gated: bool) -> Kernel:
    return load(
        "middle_product",
        "middle_product",
        "PPPqqiiTTiiii",
        torch.device("cuda", index),
        shared_bytes=MOST_BYTES,
        DTYPE=C_TYPES[dtype],
        TILE=rows,
        SPLITS=splits,
        GROUPS=groups,
        GATED=int(gated),
    )
