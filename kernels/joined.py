"""Operations that are several in one, done one after the other: what every table can do that has the single ones."""

from typing import Protocol

import torch
from torch import Tensor

from headrace.kernels.table import Linear


class _Singles(Protocol):
    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear: ...

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor: ...

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor: ...

    def silu_mul(self, gate_up: Tensor, *, out: Tensor | None = None) -> Tensor: ...

    def add(self, x: Tensor, y: Tensor) -> None: ...


class JoinedOperations:
    """A part of a table; shapes are in ``table.Operations``. What lies between two operations is rounded."""

    def take_spare_bytes(self, num_bytes: int) -> bool:
        """Keep nothing beside the weights, whose memory is mapped from files and shared."""
        return False

    def pack_gate_up(
        self: _Singles, gate: Tensor, up: Tensor, gate_bias: Tensor | None = None, up_bias: Tensor | None = None
    ) -> Linear:
        """Put gate before up."""
        bias = None if gate_bias is None or up_bias is None else torch.cat((gate_bias, up_bias))
        return self.pack_linear(torch.cat((gate, up)), bias)

    def norm_linear(
        self: _Singles,
        x: Tensor,
        weight: Tensor,
        eps: float,
        linear: Linear,
        *,
        normed: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Normalise, then multiply."""
        return self.linear(self.rms_norm(x, weight, eps, out=normed), linear, out=out)

    def norm_linear_for_sampled(
        self: _Singles,
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
        """Normalise, then multiply: all features of all tokens."""
        return self.linear(self.rms_norm(x, weight, eps, out=normed), linear, out=out)

    def norm_gate_up(
        self: _Singles,
        x: Tensor,
        weight: Tensor,
        eps: float,
        gate_up: Linear,
        *,
        normed: Tensor | None = None,
        product: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Normalise, multiply, then gate."""
        product = self.linear(self.rms_norm(x, weight, eps, out=normed), gate_up, out=product)
        return self.silu_mul(product, out=out)

    def linear_add(
        self: _Singles, x: Tensor, linear: Linear, residual: Tensor, *, product: Tensor | None = None
    ) -> None:
        """Multiply, then add."""
        self.add(residual, self.linear(x, linear, out=product))
