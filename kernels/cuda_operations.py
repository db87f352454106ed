"""The table of operations on a GPU: our kernels, and cuBLAS through torch for products of many tokens.

Shapes and dtypes are in ``table.Operations``, which ``CudaOperations`` fulfils; here are only the reasons for how.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels import activation, rotary_kv
from headrace.kernels.add import add
from headrace.kernels.decode_attention import DecodeAttention
from headrace.kernels.decode_shape import DecodeShape
from headrace.kernels.device import open_device
from headrace.kernels.embedding import embedding
from headrace.kernels.layer_norm import layer_norm
from headrace.kernels.prefill_attention import PrefillAttention
from headrace.kernels.prefill_shape import PrefillShape
from headrace.kernels.rms_norm import rms_norm
from headrace.kernels.rotary_kv import KVPages, Rotary
from headrace.kernels.table import Batch, HeadNorm, Linear
from headrace.kernels.thin_product import MOST_TOKENS, ThinProduct, beats_cublas

_GELU: dict[str, activation.Gelu] = {"none": "erf", "tanh": "tanh"}


@dataclass(frozen=True, slots=True)
class Queries:
    """The rows of a step that bring several tokens, or their prompt's first.

    Attributes:
        num_tokens: of all of them; they lie behind the tokens of decoding rows, in the order of their places.
        starts: int32 ``[num_places + 1]``, where a place's tokens begin, counted from the first chunk's.
        lengths: int32 ``[num_places]``, context with this step's tokens; 0 where a place brings no chunk.
        num_chunks: places that bring one.
    """

    num_tokens: int
    starts: Tensor
    lengths: Tensor
    num_chunks: int


@dataclass(frozen=True, slots=True)
class PagedBatch(Batch):
    """A batch whose rows have places that stay: first a token of every place, then the chunks.

    Token ids are int64, positions int32 and -1 where a place has nothing to decode: nothing is written for it, and what
    is computed for it means nothing.

    Attributes:
        rows: int32 ``[num_tokens]``, each token's place.
        lengths: int32 ``[num_places]``, context of decoding rows with this step's token, else 0; None where no row
            decodes: then there are no tokens but the chunks'.
        queries: None where all rows decode.
        pages: a layer's pages each, with a page table of ``num_places`` rows.
    """

    rows: Tensor
    lengths: Tensor | None
    queries: Queries | None
    pages: Sequence[KVPages]


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How large a step may be.

    Attributes:
        max_rows: places.
        max_pages: pages of a row.
        max_tokens: tokens, a token of every place among them.
    """

    max_rows: int
    max_pages: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class _Packed(Linear):
    thin: ThinProduct | None = None


class CudaOperations:
    """The table, ``table.Table`` of paged batches; one step at a time, on torch's current stream.

    Weights can be brought to it at once; before its first step, it must be told how large steps will be.

    Args:
        device: a GPU, with its index.

    Raises:
        ConfigurationError: no such GPU, no PyCUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self._has_bulk_copies = open_device(device.index).arch.startswith("sm_9")
        self._device = device
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
        self._decode: dict[int | None, DecodeAttention] = {}
        self._prefill: PrefillAttention | None = None
        self._decode_planned: set[int | None] = set()
        self._prefill_planned = False

    @contextmanager
    def step(self, batch: PagedBatch) -> Iterator[None]:
        """Keep the batch at hand; attention's work is shared out when the first layer asks."""
        self._batch = batch
        self._decode_planned.clear()
        self._prefill_planned = False
        try:
            yield
        finally:
            self._batch = None

    def hold(self, weight: Tensor) -> Tensor:
        """Bring a weight to the GPU."""
        return weight.to(self._device)

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Keep rows contiguous, which serves cuBLAS and the thin product alike."""
        weight = weight.to(self._device).contiguous()
        bias = None if bias is None else bias.to(self._device)
        sixteen = weight.dtype in (torch.float16, torch.bfloat16)
        fits = self._has_bulk_copies and sixteen and weight.shape[1] % 8 == 0
        return _Packed(weight, bias, thin=ThinProduct(weight, bias) if fits else None)

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Multiply: few tokens at the speed at which memory gives the weight, many by cuBLAS."""
        num_tokens, (out_features, in_features) = x.shape[0], linear.weight.shape
        thin = linear.thin if isinstance(linear, _Packed) and num_tokens <= MOST_TOKENS else None
        if thin is not None and beats_cublas(num_tokens, out_features, in_features):
            out = x.new_empty(num_tokens, out_features) if out is None else out
            thin(x, out)
            return out
        if linear.bias is None:
            return torch.mm(x, linear.weight.T, out=out)
        return torch.addmm(linear.bias, x, linear.weight.T, out=out)

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
        rotary = rotary_kv.rotary_table(positions, inv_freq, scale=scale, out=(cosines, sines))
        return rotary.cosines, rotary.sines

    def rotary_kv(
        self,
        qkv: Tensor,
        layer: int,
        num_heads: int,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        norm: HeadNorm | None = None,
    ) -> Tensor:
        """Norm, rotate and write by one kernel; queries stay where they are."""
        batch = self._entered()
        pages = batch.pages[layer]
        query = qkv.view(qkv.shape[0], -1, pages.keys.shape[3])[:, :num_heads]
        return rotary_kv.rotary_kv(
            qkv,
            batch.positions,
            pages,
            num_heads=num_heads,
            rotary=None if rotary is None else Rotary(*rotary),
            norm=None if norm is None else rotary_kv.HeadNorm(norm.query, norm.key, norm.eps),
            rows=batch.rows,
            out=query,
        )

    def attention(self, query: Tensor, layer: int, *, window: int | None = None, out: Tensor | None = None) -> Tensor:
        """Attend: rows that decode by one kernel, chunks by another."""
        batch = self._entered()
        num_tokens, num_heads, head_dim = query.shape
        result = query.new_empty(num_tokens, num_heads * head_dim) if out is None else out
        seen, pages = result.view(num_tokens, num_heads, head_dim), batch.pages[layer]
        num_decoding = 0
        if batch.lengths is not None:
            num_decoding = batch.lengths.shape[0]
            decode = self._decode_attention(query, pages, window)
            if window not in self._decode_planned:
                decode.plan(batch.lengths)
                self._decode_planned.add(window)
            decode.run(seen[:num_decoding], query[:num_decoding], pages, batch.lengths)
        if (queries := batch.queries) is not None:
            prefill = self._prefill_attention(query, pages)
            if not self._prefill_planned:
                prefill.plan(queries.starts, queries.lengths, queries.num_tokens, most_chunks=queries.num_chunks)
                self._prefill_planned = True
            prefill.run(seen[num_decoding:], query[num_decoding:], pages, window=window)
        return result

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

    def _entered(self) -> PagedBatch:
        if self._batch is None:
            raise KernelError("attention and its memory belong to a step; enter one first")
        return self._batch

    def _decode_attention(self, query: Tensor, pages: KVPages, window: int | None) -> DecodeAttention:
        if window not in self._decode:
            num_kv_heads, page_size, head_dim = pages.keys.shape[1:]
            group, sizes = query.shape[1] // num_kv_heads, self._sizes
            shape = DecodeShape(
                num_kv_heads, group, head_dim, query.dtype, sizes.max_rows, sizes.max_pages, page_size, window
            )
            workspace = self._workspace(DecodeAttention.workspace_bytes(shape, self._device))
            self._decode[window] = DecodeAttention(shape, self._device, workspace)
        return self._decode[window]

    def _prefill_attention(self, query: Tensor, pages: KVPages) -> PrefillAttention:
        if self._prefill is None:
            num_kv_heads, page_size, head_dim = pages.keys.shape[1:]
            group, sizes = query.shape[1] // num_kv_heads, self._sizes
            shape = PrefillShape(
                num_kv_heads, group, head_dim, query.dtype, sizes.max_rows, sizes.max_tokens, page_size
            )
            workspace = self._workspace(PrefillAttention.workspace_bytes(shape, self._device))
            self._prefill = PrefillAttention(shape, self._device, workspace)
        return self._prefill
