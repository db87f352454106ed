"""A table whose results lie where a plan says: it hands each operation of another table the tensor to write into.

A model knows nothing of it, but must keep to the table's rule: it computes by its operations only, always the same
ones in the same order. How a step is traced and laid out stands in ``planned_steps``.
"""

from typing import Literal

import torch
from torch import Tensor

from headrace.kernels.planned_steps import B, PlannedSteps
from headrace.kernels.step_trace import Between
from headrace.kernels.table import HeadNorm, Linear


class PlannedOperations(PlannedSteps[B]):
    """The operations of a table over another one; what each writes goes where the step's plan says."""

    def hold(self, weight: Tensor) -> Tensor:
        """See ``Operations``."""
        return self._operations.hold(weight)

    def take_spare_bytes(self, num_bytes: int) -> bool:
        """See ``Operations``."""
        return self._operations.take_spare_bytes(num_bytes)

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """See ``Operations``."""
        return self._operations.pack_linear(weight, bias)

    def pack_gate_up(
        self, gate: Tensor, up: Tensor, gate_bias: Tensor | None = None, up_bias: Tensor | None = None
    ) -> Linear:
        """See ``Operations``."""
        return self._operations.pack_gate_up(gate, up, gate_bias, up_bias)

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """See ``Operations``."""
        result = self._operations.linear(x, linear, out=self._out(out) if linear.writes_out else None)
        self._note(x, result=result, planned=linear.writes_out)
        return result

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
        """See ``Operations``."""
        normed, out = self._out(normed), self._out(out) if linear.writes_out else None
        result = self._operations.norm_linear(x, weight, eps, linear, normed=normed, out=out)
        self._note(x, result=result, planned=linear.writes_out, between=[Between(x.shape[1], x.dtype)])
        return result

    def norm_linear_for_sampled(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        linear: Linear,
        num_features: int,
        *,
        normed: Tensor | None = None,
        picked: Tensor | None = None,
        product: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """See ``Operations``."""
        normed, picked, product = self._out(normed), self._out(picked), self._out(product)
        result = self._operations.norm_linear_for_sampled(
            *(x, weight, eps, linear, num_features),
            normed=normed,
            picked=picked,
            product=product,
            out=self._out(out) if linear.writes_out else None,
        )
        sampled = [Between(width, x.dtype, per_sampled=True) for width in (x.shape[1], num_features)]
        self._note(x, result=result, planned=linear.writes_out, between=[Between(x.shape[1], x.dtype), *sampled])
        return result

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
        """See ``Operations``."""
        normed, product = self._out(normed), self._out(product) if gate_up.writes_out else None
        result = self._operations.norm_gate_up(
            x, weight, eps, gate_up, normed=normed, product=product, out=self._out(out)
        )
        between = [Between(x.shape[1], x.dtype), Between(2 * result.shape[1], x.dtype)]
        self._note(x, result=result, between=between if gate_up.writes_out else between[:1])
        return result

    def linear_add(self, x: Tensor, linear: Linear, residual: Tensor, *, product: Tensor | None = None) -> None:
        """See ``Operations``."""
        product = self._out(product) if linear.writes_out else None
        self._operations.linear_add(x, linear, residual, product=product)
        self._note(x, residual, between=[Between(residual.shape[1], x.dtype)] if linear.writes_out else ())

    def embedding(self, token_ids: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
        """See ``Operations``."""
        result = self._operations.embedding(token_ids, weight, out=self._out(out))
        self._note(token_ids, result=result)
        return result

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """See ``Operations``."""
        result = self._operations.rms_norm(x, weight, eps, residual=residual, out=self._out(out))
        self._note(x, residual, result=result)
        return result

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
        """See ``Operations``."""
        result = self._operations.layer_norm(x, weight, bias, eps, residual=residual, out=self._out(out))
        self._note(x, residual, result=result)
        return result

    def rotary_table(
        self, positions: Tensor, inv_freq: Tensor, result: torch.dtype, *, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """See ``Operations``."""
        return self._operations.rotary_table(positions, inv_freq, result, scale=scale)

    def rotary_attention(
        self,
        qkv: Tensor,
        layer: int,
        num_heads: int,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        norm: HeadNorm | None = None,
        window: int | None = None,
        only_sampled: bool = False,
        seen: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """See ``Operations``."""
        seen = self._out(seen) if only_sampled else None
        result = self._operations.rotary_attention(
            *(qkv, layer, num_heads),
            rotary=rotary,
            norm=norm,
            window=window,
            only_sampled=only_sampled,
            seen=seen,
            out=self._out(out),
        )
        between = [Between(result.shape[1], result.dtype)] if only_sampled else ()
        self._note(qkv, result=result, selects=only_sampled, between=between)
        return result

    def silu_mul(self, gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
        """See ``Operations``."""
        result = self._operations.silu_mul(gate_up, out=self._out(out))
        self._note(gate_up, result=result)
        return result

    def gelu(self, x: Tensor, approximate: Literal["none", "tanh"], *, out: Tensor | None = None) -> Tensor:
        """See ``Operations``."""
        result = self._operations.gelu(x, approximate, out=self._out(out))
        self._note(x, result=result)
        return result

    def add(self, x: Tensor, y: Tensor) -> None:
        """See ``Operations``."""
        self._operations.add(x, y)
        self._note(x, y)

    def select(self, x: Tensor, indices: Tensor, *, out: Tensor | None = None) -> Tensor:
        """See ``Operations``."""
        result = self._operations.select(x, indices, out=self._out(out))
        self._note(x, result=result, selects=True)
        return result
