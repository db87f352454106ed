"""The table on a GPU with orders of sums that nothing but a token's own row decides.

``CudaOperations`` chooses the fastest kernel for a step's sizes, and another kernel rounds otherwise. Here every sum
has one order: a row has the same tokens alone, beside others, in whatever chunks its prompt came, and where another
worker goes on with it on the same kind of GPU with the same versions. That takes products by ``fixed_product``, norms
planned as for one row, and rows that decode attended to as chunks of one token, by the kernel that prompts use. All
else (rotation, activation, sampling) computes each row for itself anyhow.
"""

from collections.abc import Callable

from torch import Tensor

from headrace.kernels.cuda_operations import CudaOperations
from headrace.kernels.fixed_attention import FixedAttention
from headrace.kernels.fixed_product import fixed_product
from headrace.kernels.joined import JoinedOperations
from headrace.kernels.layer_norm import layer_norm
from headrace.kernels.paged_batch import StepSizes
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.table import Linear

#: Norms are planned as for so many rows.
_PLANNED_ROWS = 1


class FixedOperations(JoinedOperations, CudaOperations):
    """``CudaOperations`` in fixed orders, joined operations one after the other; bf16 and fp16 only."""

    def reserve(self, sizes: StepSizes, workspace: Callable[[int], Tensor] | None = None) -> None:
        """See ``CudaOperations``."""
        super().reserve(sizes, workspace)
        self._attention = FixedAttention(self._device, sizes, self._workspace)

    def take_spare_bytes(self, num_bytes: int) -> bool:
        """See ``CudaOperations``."""
        return CudaOperations.take_spare_bytes(self, num_bytes)

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Keep rows contiguous."""
        weight = weight.to(self._device).contiguous()
        return Linear(weight, None if bias is None else bias.to(self._device))

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Multiply."""
        return fixed_product(x, linear.weight, linear.bias, out)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Normalise, after adding into the residual stream where there is one."""
        return rms_norm(x, weight, eps, residual=residual, out=out, planned_rows=_PLANNED_ROWS)

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        *,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Normalise, after adding into the residual stream where there is one."""
        return layer_norm(x, weight, bias, eps, residual=residual, out=out, planned_rows=_PLANNED_ROWS)
