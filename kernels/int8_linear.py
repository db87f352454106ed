"""Products in 8 bits on a CPU: weights quantised once by torchao, activations token by token as they come.

Weights have a scale an output, activations a range a token, so that a token's result does not depend on its company.
torchao's own product makes several passes over results in memory and ends up slower than fp32 from a thousand tokens
on, so the product is oneDNN's, the operator to which torch's compiler brings torchao's form on x86.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headrace.errors import ConfigurationError
from headrace.kernels.table import Linear, Packer

# Tokens whose results stay in a core's cache until their scales are applied.
_CHUNK_TOKENS = 128
# A token whose numbers are all alike has none.
_SMALLEST_STEP = 1e-12


@dataclass(frozen=True, slots=True)
class Int8Linear(Linear):
    """A weight in 8 bits, in oneDNN's blocks.

    Attributes:
        scales: fp32 ``[out_features]``.
        sums: fp32 ``[out_features]``, of each output's weights.
        zeros: int64 ``[out_features]``, all 0.
        num_steps: into which a token's range of numbers is cut.
    """

    scales: Tensor = field(kw_only=True)
    sums: Tensor = field(kw_only=True)
    zeros: Tensor = field(kw_only=True)
    num_steps: int = field(kw_only=True)

    def multiply(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Multiply ``x [n, in_features]``, fp32, and add the bias: ``[n, out_features]``.

        A token is ``least + step * levels``, so its product is ``step * (levels @ weight) + least * sums``: behind a
        GELU, where nearly all numbers are positive, no step is lost to others.
        """
        if out is None:
            out = x.new_empty(x.shape[0], self.scales.shape[0])
        for first in range(0, x.shape[0], _CHUNK_TOKENS):
            part, result = x[first : first + _CHUNK_TOKENS], out[first : first + _CHUNK_TOKENS]
            least = part.amin(1, keepdim=True)
            step = (part.amax(1, keepdim=True) - least).div_(self.num_steps).clamp_min_(_SMALLEST_STEP)
            # The conversion drops fractions; the direct one to 8 bits is slow.
            levels = (part - least).mul_(step.reciprocal()).add_(0.5).to(torch.int32).to(torch.uint8)
            product = torch.ops.onednn.qlinear_pointwise(
                levels, 1.0, 0, self.weight, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
            if self.bias is None:
                torch.mul(least, self.sums, out=result)
            else:
                torch.addcmul(self.bias, least, self.sums, out=result)
            result.addcmul_(product, step)
        return out


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep loggers from telling less than errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


class Int8Packer:
    """Packs weights in 8 bits for a table that holds the others as they are.

    Args:
        table: which computes fp32 on a CPU.

    Raises:
        ConfigurationError: torchao is not installed, or this torch has no products in 8 bits.
    """

    def __init__(self, table: Packer) -> None:
        self._table = table
        if not torch._C._has_mkldnn:
            raise ConfigurationError("dtype int8 needs a torch with oneDNN; set dtype to float32")
        try:
            # It tells of GPU libraries that do not load on a CPU, and of what torch will want of it.
            with _quiet("torchao", "torch.utils._pytree"):
                from torchao import quantization
        except ImportError as error:
            raise ConfigurationError(f"dtype int8 needs torchao ({error}); pip install 'headrace[int8]'") from error
        self._quantization = quantization
        # Without VNNI, two products of 8 bits are added up in 16: one bit less keeps their sum.
        self._num_steps = 255 if torch.cpu._is_vnni_supported() else 127

    def hold(self, weight: Tensor) -> Tensor:
        """See ``Packer``."""
        return self._table.hold(weight)

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Quantise a weight, fp32 ``[out_features, in_features]``."""
        num_outputs, num_inputs = weight.shape
        module = torch.nn.Linear(num_inputs, num_outputs, bias=False, device="meta")
        module.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
        self._quantization.quantize_(module, self._quantization.Int8DynamicActivationInt8WeightConfig())
        quantised: Any = module.weight
        scales = quantised.scale.float().flatten()
        return Int8Linear(
            weight=torch.ops.onednn.qlinear_prepack(quantised.qdata, [_CHUNK_TOKENS, num_inputs]),
            bias=bias,
            scales=scales,
            sums=quantised.qdata.sum(dim=1, dtype=torch.int32) * scales,
            zeros=torch.zeros(num_outputs, dtype=torch.int64),
            num_steps=self._num_steps,
        )
