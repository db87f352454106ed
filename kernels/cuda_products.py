"""The products of the table of operations on a GPU, with what stands before and behind them.

Few tokens and some are multiplied by our own kernels, at the speed at which memory gives the weight, and gates, sums
and (for few tokens) norms are done in the same kernel; many are cuBLAS's, but for some that are gated. What is rounded
between two operations is rounded in the joined kernel, too, with one exception: cuBLAS adds into the residual stream
before it rounds.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels import activation, middle_choice, wide_choice
from headrace.kernels.add import add
from headrace.kernels.blas import multiply, multiply_into
from headrace.kernels.device import open_device
from headrace.kernels.middle_product import MiddleProduct
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.table import Linear
from headrace.kernels.thin_choice import FEW_TOKENS, MOST_TOKENS, Product, beats_cublas, choose_norming
from headrace.kernels.thin_product import Norm, ThinProduct
from headrace.kernels.wide_product import WideProduct


@dataclass(frozen=True, slots=True)
class _Packed(Linear):
    thin: ThinProduct | None = None
    middle: MiddleProduct | None = None
    wide: WideProduct | None = None


class CudaProducts:
    """A part of ``CudaOperations``; shapes are in ``table.Operations``.

    Args:
        device: a GPU, with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_hopper = open_device(device.index).arch.startswith("sm_9")
        self._device = device

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Keep rows contiguous, which serves cuBLAS and our own products alike."""
        weight = weight.to(self._device).contiguous()
        bias = None if bias is None else bias.to(self._device)
        sixteen = weight.dtype in (torch.float16, torch.bfloat16)
        fits = self._is_hopper and sixteen and weight.shape[1] % 8 == 0
        return _Packed(
            weight,
            bias,
            thin=ThinProduct(weight, bias) if fits else None,
            middle=MiddleProduct(weight, bias) if fits and weight.shape[0] % 8 == 0 else None,
            wide=WideProduct(weight, bias) if fits and weight.shape[0] % 8 == 0 else None,
        )

    def pack_gate_up(
        self, gate: Tensor, up: Tensor, gate_bias: Tensor | None = None, up_bias: Tensor | None = None
    ) -> Linear:
        """Let rows of gate and up alternate: who computes some rows can gate them."""
        weight = torch.stack((gate.to(self._device), up.to(self._device)), dim=1).flatten(0, 1)
        bias = None
        if gate_bias is not None and up_bias is not None:
            bias = torch.stack((gate_bias, up_bias), dim=1).flatten()
        return self.pack_linear(weight, bias)

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Multiply."""
        if (own := _many(x, linear) or _thin(x, linear)) is None:
            return multiply(x, linear.weight, linear.bias, out)
        out = _room(x, linear.weight.shape[0], out)
        own(x, out)
        return out

    def norm_linear(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        linear: Linear,
        *,
        normed: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Normalise and multiply."""
        thin = None if _many(x, linear) else _thin(x, linear)
        if thin is None or choose_norming(_product(x, linear)) is None:
            return self.linear(rms_norm(x, weight, eps, out=normed), linear, out=out)
        out = _room(x, linear.weight.shape[0], out)
        thin(x, out, norm=Norm(weight, eps))
        return out

    def norm_gate_up(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        gate_up: Linear,
        *,
        normed: Tensor | None = None,
        product: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Normalise, multiply and gate."""
        many = _many(x, gate_up, gated=True)
        thin = None if many else _thin(x, gate_up)
        if thin is not None and choose_norming(_product(x, gate_up)) is not None:
            out = _room(x, gate_up.weight.shape[0] // 2, out)
            thin(x, out, norm=Norm(weight, eps), gated=True)
            return out
        normed = rms_norm(x, weight, eps, out=normed)
        if (own := many or thin) is None:
            product = multiply(normed, gate_up.weight, gate_up.bias, product)
            return activation.swiglu(product, layout="alternating", out=out)
        out = _room(x, gate_up.weight.shape[0] // 2, out)
        own(normed, out, gated=True)
        return out

    def linear_add(self, x: Tensor, linear: Linear, residual: Tensor, *, product: Tensor | None = None) -> None:
        """Multiply and add."""
        if (own := _many(x, linear) or _thin(x, linear)) is not None:
            own(x, residual, residual=residual)
        elif linear.bias is None:
            multiply_into(residual, x, linear.weight)
        else:
            add(residual, multiply(x, linear.weight, linear.bias, product))


def _product(x: Tensor, linear: Linear) -> Product:
    out_features, in_features = linear.weight.shape
    return Product(x.shape[0], out_features, in_features)


def _many(x: Tensor, linear: Linear, *, gated: bool = False) -> MiddleProduct | WideProduct | None:
    """Our kernel for so many tokens, where it is the fastest; first steps, of few, compile it for later ones."""
    if (x.shape[0] > wide_choice.MOST_TOKENS and not gated) or not isinstance(linear, _Packed):
        return None
    if linear.middle is None or linear.wide is None:
        return None
    product = _product(x, linear)
    if x.shape[0] > middle_choice.MOST_TOKENS:
        return None if wide_choice.choose(product) is None else linear.wide
    if x.shape[0] <= FEW_TOKENS:
        linear.middle.load(gated=gated)
        linear.wide.load(gated=gated)
    return linear.middle if middle_choice.is_best(product, gated=gated) else None


def _thin(x: Tensor, linear: Linear) -> ThinProduct | None:
    """Our kernel for few tokens, where it is faster than cuBLAS."""
    if x.shape[0] > MOST_TOKENS:  # most steps with prompts: nothing more is asked of them
        return None
    if isinstance(linear, _Packed) and linear.thin is not None and beats_cublas(_product(x, linear)):
        return linear.thin
    return None


def _room(x: Tensor, width: int, out: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], width) if out is None else out
