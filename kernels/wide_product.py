"""Products of more tokens than some: so few that cuBLAS's tiles leave multiprocessors idle, or many that are gated.

``cuda/wide_product.cu`` holds the kernel, ``torch.nn.functional.linear`` is its oracle. It needs Hopper.
"""

import functools
from dataclasses import replace

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES
from headrace.kernels.hopper_operands import device_of_weight, require_rows
from headrace.kernels.launch import Kernel, load
from headrace.kernels.tensor_map import tensor_map
from headrace.kernels.thin_choice import MOST_BYTES, Product
from headrace.kernels.wide_choice import MANY, MEASURED, Tiling, choose, takes


class WideProduct:
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
        self._device = device_of_weight(weight, bias, "a wide product")

    def load(self, *, gated: bool) -> None:
        """Compile what products with this weight take, for all numbers of tokens for which they are the fastest.

        Args:
            gated: as they will be.
        """
        shape = (self.weight.shape[0], self.weight.shape[1])
        tilings = [tiling for _, _, tiling in MEASURED.get(shape, ())]
        if gated:
            tilings += [tiling for _, tiling in MANY.get(shape, ())]
        for tiling in tilings:
            _kernel(self._device.index, self.weight.dtype, tiling, gated)

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
            x: ``[num_tokens, in_features]``, one row at least, contiguous each and 16-byte aligned.
            out: ``[num_tokens, out_features]``, or half as wide if gated; rows contiguous and 16-byte aligned; must not
                overlap ``x``.
            residual: like ``out``, and may be ``out`` itself; added after the product has been rounded, as two
                operations of torch would.
            gated: the weight's rows alternate, gate and up: what is written is ``silu(gate) * up`` of the rounded
                products.
            tiling: default: what was measured to be the fastest.

        Raises:
            KernelError: shapes, dtypes or layouts do not fit, or no tiling is given and none was measured.
        """
        num_tokens, (out_features, in_features) = x.shape[0], self.weight.shape
        product = Product(num_tokens, out_features, in_features)
        if x.shape != (num_tokens, in_features) or num_tokens < 1:
            raise KernelError(f"x is {tuple(x.shape)}, not [1.., {in_features}]")
        if not takes(product, gated=gated) or (gated and residual is not None):
            raise KernelError(f"a gated product has eights of pairs and no residual, not {out_features} rows")
        width = out_features // 2 if gated else out_features
        require_rows("x", x, (num_tokens, in_features), self.weight.dtype)
        require_rows("out", out, (num_tokens, width), x.dtype)
        if residual is not None:
            require_rows("residual", residual, (num_tokens, width), x.dtype)
        chosen = tiling or choose(product)
        if chosen is None or not chosen.fits(product):
            raise KernelError(f"{chosen} does not cut up {product}")
        clusters, x_rows = chosen.num_clusters(product, self._device.num_sms), chosen.x_rows(product)
        kernel = _kernel(self._device.index, x.dtype, chosen, gated)
        kernel(
            (clusters * chosen.cluster, 1),
            (chosen.threads, 1, 1),
            *(out, self.bias, residual),
            *(out.stride(0), 0 if residual is None else residual.stride(0), num_tokens, out_features),
            tensor_map(self.weight, chosen.rows // chosen.token_blocks),
            tensor_map(x, x_rows),
            *(chosen.num_steps(product), chosen.num_tiles(product)),
            *(chosen.num_token_tiles(product), chosen.band, chosen.stages, x_rows),
            shared_bytes=chosen.shared_bytes,
        )


def _kernel(index: int, dtype: torch.dtype, tiling: Tiling, gated: bool) -> Kernel:
    return _loaded(index, dtype, replace(tiling, stages=0, band=0), gated)  # a ring of any length has the same kernel


@functools.cache
def _loaded(index: int, dtype: torch.dtype, form: Tiling, gated: bool) -> Kernel:
    return load(
        "wide_product",
        "wide_product",
        "PPPqqiiTTiiiiii",
        torch.device("cuda", index),
        shared_bytes=MOST_BYTES,
        **form.macros(gated=gated),
        DTYPE=C_TYPES[dtype],
    )
