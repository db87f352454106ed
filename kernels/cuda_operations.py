"""The table of operations on a GPU: our kernels, and cuBLAS through torch for products of many tokens.

Shapes and dtypes are in ``table.Operations``, which ``CudaOperations`` fulfils; here are only the reasons for how.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels import activation
from headrace.kernels.add import add
from headrace.kernels.blas import multiply
from headrace.kernels.cuda_attention import StepAttention
from headrace.kernels.cuda_products import CudaProducts
from headrace.kernels.embedding import embedding
from headrace.kernels.layer_norm import layer_norm
from headrace.kernels.paged_batch import PagedBatch, StepSizes
from headrace.kernels.place_rows import place_rows, prepare
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.rotary import rotary_table
from headrace.kernels.table import HeadNorm, Linear

#: Of fewer tokens, a product of some features takes cuBLAS hardly less time than one of all.
LEAST_TO_SPARE = 4096

_GELU: dict[str, activation.Gelu] = {"none": "erf", "tanh": "tanh"}


class CudaOperations(CudaProducts):
    """The table, ``table.Table`` of paged batches; one step at a time, on torch's current stream.

    Weights can be brought to it at once; before its first step, it must be told how large steps will be.

    Args:
        device: a GPU, with its index.
        table_bytes: what may be kept of what every step could compute.

    Raises:
        ConfigurationError: no such GPU, no PyCUDA.
    """

    def __init__(self, device: torch.device, table_bytes: int = 0) -> None:
        super().__init__(device)
        self._table_bytes = table_bytes
        self._batch: PagedBatch | None = None
        self.reserve(StepSizes(1, 1, 1))

    def reserve(self, sizes: StepSizes, workspace: Callable[[int], Tensor] | None = None) -> None:
        """Begin anew with steps of up to such a size; what was reserved before is forgotten.

        Args:
            sizes: of steps at most.
            workspace: gives memory for good: uint8, so many bytes, 16-byte aligned. Default: torch does.
        """
        self._sizes = sizes
        self._workspace = workspace or partial(torch.empty, dtype=torch.uint8, device=self._device)
        self._angles: dict[int, tuple[Tensor, Tensor]] = {}
        self._attention = StepAttention(self._device, sizes, self._workspace)

    @contextmanager
    def step(self, batch: PagedBatch) -> Iterator[None]:
        """Keep the batch at hand; attention's work is shared out when the first layer asks."""
        self._batch = batch
        self._attention.begin()
        try:
            yield
        finally:
            self._batch = None

    def take_spare_bytes(self, num_bytes: int) -> bool:
        """Take them of what tables may have."""
        if num_bytes > self._table_bytes:
            return False
        self._table_bytes -= num_bytes
        return True

    def hold(self, weight: Tensor) -> Tensor:
        """Bring a weight to the GPU."""
        return weight.to(self._device)

    def embedding(self, token_ids: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Look tokens up; padding gives zeros."""
        return embedding(token_ids, weight, out=out)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Normalise, after adding into the residual stream where there is one."""
        return rms_norm(x, weight, eps, residual=residual, out=out)

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
        return layer_norm(x, weight, bias, eps, residual=residual, out=out)

    def rotary_table(
        self, positions: Tensor, inv_freq: Tensor, result: torch.dtype, *, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Compute angles in fp32, whatever the activations are, into memory that stays."""
        half, num_tokens = inv_freq.numel(), positions.numel()
        if half not in self._angles:
            room = self._workspace(8 * self._sizes.max_tokens * half).view(torch.float32).view(2, -1, half)
            self._angles[half] = (room[0], room[1])
        cosines, sines = (room[:num_tokens] for room in self._angles[half])
        rotary = rotary_table(positions, inv_freq, scale=scale, out=(cosines, sines))
        return rotary.cosines, rotary.sines

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
        """Normalise and multiply; of many tokens nothing is computed that nobody wants."""
        if self._batch is None:
            raise KernelError("what is sampled belongs to a step; enter one first")
        sampled = self._batch.sampled
        num_spared = x.shape[0] - sampled.numel()
        if num_spared < LEAST_TO_SPARE or linear.bias is not None:
            prepare(x, sampled)  # at an engine's first steps, few tokens as they have
            return self.norm_linear(x, weight, eps, linear, normed=normed, out=out)
        normed = self.rms_norm(x, weight, eps, out=normed)
        out = x.new_empty(x.shape[0], linear.weight.shape[0]) if out is None else out
        multiply(normed, linear.weight[num_features:], None, out[:, num_features:])
        if sampled.numel():
            picked = self.select(normed, sampled, out=picked)
            place_rows(multiply(picked, linear.weight[:num_features], None, product), sampled, out)
        return out

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
        """Norm, rotate, write and attend, by one kernel or several."""
        if self._batch is None:
            raise KernelError("attention and its memory belong to a step; enter one first")
        # Where all rows decode, each is sampled; of a chunk it is the last token if any.
        picks = only_sampled and self._batch.queries is not None
        result = self._attention.rotary_attention(
            *(self._batch, qkv, layer, num_heads),
            rotary=rotary,
            norm=norm,
            window=window,
            out=seen if picks else out,
            only_last=picks,
        )
        sampled = self._batch.sampled
        if not picks:
            return result
        return self.select(result, sampled, out=out) if sampled.numel() else result[:0]

    def silu_mul(self, gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Gate."""
        return activation.swiglu(gate_up, out=out)

    def gelu(self, x: Tensor, approximate: Literal["none", "tanh"], *, out: Tensor | None = None) -> Tensor:
        """Apply."""
        return activation.bias_gelu(x, None, gelu=_GELU[approximate], out=out)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add in place."""
        add(x, y)

    def select(self, x: Tensor, indices: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Pick rows, as an embedding does."""
        return embedding(indices, x, out=out)
