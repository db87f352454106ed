"""Attention of rows with several query tokens each, packed one after the other, over keys and values in pages.

``cuda/prefill_attention.cu`` computes, or ``cuda/prefill_ring.cu`` to the same bits (``prefill_ring`` says when);
``cuda/prefill_plan.cu`` shares the work out, ``reference_attention`` is the oracle. Once a step ``plan``, then once a
layer ``run``: both read rows and lengths on the device, so that a captured graph serves any cut of the same number of
tokens into the same number of rows.
"""

import functools
import math
from dataclasses import replace

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import require
from headrace.kernels.device import Device, open_device
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.launch import Kernel, load
from headrace.kernels.prefill_ring import Ring, choose_ring, rings_for
from headrace.kernels.prefill_shape import UNIT_KEYS, Block, PrefillShape, choose_block
from headrace.kernels.ring_attention import RingAttention
from headrace.kernels.rotary import Rotary

_PLAN_THREADS = 512
_ITEM_BYTES = 32


class PrefillAttention:
    """Prefill attention of one shape on one GPU, with the memory that it needs.

    A token's result has the same bits whatever rows are beside its own, and however its prompt was cut into steps. They
    are not those of ``decode_attention``, which sums in another order. One object serves one step at a time: its
    workspace holds the step's plan.

    Args:
        shape: what all steps have in common.
        device: a GPU; without an index, torch's current one.
        workspace: uint8, at least ``workspace_bytes`` long, 16-byte aligned; default: torch allocates it.
        block: default: ``choose_block``; steps that do not fill the GPU take blocks of half as many rows.
        ring: what all steps take instead; default: ``choose_ring``'s for prompts, unless a block is given.
        rotates: whether queries come as they were before rotation.

    Raises:
        KernelError: the workspace is too small, or the GPU's shared memory is.
    """

    def __init__(
        self,
        shape: PrefillShape,
        device: torch.device,
        workspace: Tensor | None = None,
        block: Block | None = None,
        ring: Ring | None = None,
        *,
        rotates: bool = False,
    ) -> None:
        opened = _open(device)
        self.shape = shape
        self._num_sms = opened.num_sms
        self._ring = ring
        rings = (ring,) if ring else () if block else rings_for(shape, opened.arch)
        self._rings = {each: RingAttention(shape, replace(each, rotates=rotates), opened.index) for each in rings}
        block = block or choose_block(shape, opened.shared_bytes, opened.arch)
        self._large = replace(block, rotates=rotates)
        self._small = self._large.halved()
        self._block: Block | Ring = self._large
        self._plan_kernel = _plan_kernel(opened.index)
        self._kernels = {
            each: _kernel(opened.index, shape.dtype, shape.head_dim, each)
            for each in (self._large, self._small)
            if each
        }
        sizes = _layout(shape, self._large)
        if workspace is None:
            workspace = torch.empty(sum(sizes), dtype=torch.uint8, device=torch.device("cuda", opened.index))
        if workspace.nbytes < sum(sizes) or workspace.data_ptr() % 16:
            raise KernelError(f"prefill attention wants {sum(sizes)} aligned bytes of workspace")
        self._planned: tuple[int, int] | None = None
        self._num_items = self._shared_bytes = 0
        self._plan, self._starts = torch.split_with_sizes(workspace.view(torch.uint8)[: sum(sizes)], sizes)

    @staticmethod
    def workspace_bytes(shape: PrefillShape, device: torch.device) -> int:
        """How much workspace an object wants on a GPU."""
        opened = _open(device)
        return sum(_layout(shape, choose_block(shape, opened.shared_bytes, opened.arch)))

    def plan(
        self,
        query_starts: Tensor,
        lengths: Tensor,
        num_tokens: int,
        *,
        most_chunks: int | None = None,
        only_last: bool = False,
    ) -> None:
        """Share a step's work out, on torch's current stream; valid until rows or lengths change.

        Args:
            query_starts: int32 ``[num_rows + 1]``: row r's queries are tokens ``query_starts[r]`` to
                ``query_starts[r + 1] - 1``. The first is 0; the last may be less than ``num_tokens``.
            lengths: int32 ``[num_rows]``, keys each row has, this step's own included; 0: a row that is padding.
            num_tokens: query tokens, padding behind the last row included.
            most_chunks: a promise that no more rows than these have queries, which spares launches their blocks;
                default: all may.
            only_last: each row's last query alone attends; the others' results are not written.

        Raises:
            KernelError: dtypes, shapes or sizes do not fit.
        """
        num_rows = lengths.shape[0]
        shape = self.shape
        if not (1 <= num_rows <= shape.max_rows and 1 <= num_tokens <= shape.max_tokens):
            raise KernelError(
                f"{num_rows} rows and {num_tokens} tokens where there is room for {shape.max_rows}, {shape.max_tokens}"
            )
        require(lengths, "lengths", (num_rows,), torch.int32, alignment=4)
        require(query_starts, "query_starts", (num_rows + 1,), torch.int32, alignment=4)
        chunks = num_rows if most_chunks is None else min(most_chunks, num_rows)
        num_queries = min(chunks, num_tokens) if only_last else num_tokens
        self._block = self._choose(num_queries, chunks)
        self._shared_bytes = self._block.shared_bytes(shape.dtype, shape.head_dim)
        self._num_items = self._block.num_items(shape.group, chunks, num_queries)
        self._plan_kernel(
            (1, 1),
            (_PLAN_THREADS, 1, 1),
            *(self._plan, self._starts, query_starts, lengths, num_rows, num_tokens),
            *(shape.group, self._block.rows, self._num_items, int(only_last)),
        )
        self._planned = num_rows, num_tokens

    def run(
        self,
        out: Tensor,
        query: Tensor,
        pages: KVPages,
        *,
        window: int | None = None,
        scale: float | None = None,
        rotary: Rotary | None = None,
    ) -> None:
        """Attend in one layer, on torch's current stream, after ``plan`` of the same tokens and rows.

        Query i of a row with q queries and n keys sees keys 0 to n - q + i.

        Args:
            out: ``[num_tokens, num_heads, head_dim]``, contiguous; padding becomes zeros, but not where only last
                queries attend.
            query: the same shape; tokens may be strided (a slice of a wider tensor).
            pages: keys and values, this step's own among them; a page's tokens of one head are contiguous, pages and
                heads lie whole tokens apart. Only pages that a row's length (and window) reaches are looked up.
            window: keys that a token sees at most, itself included; None: all before it.
            scale: of scores, above 0; default: ``head_dim ** -0.5``.
            rotary: angles of these tokens, where attention rotates: for whole heads, not interleaved. Else None.

        Raises:
            KernelError: shapes, dtypes or layouts do not fit.
        """
        shape, num_rows, num_tokens = self.shape, pages.page_table.shape[0], query.shape[0]
        # Else blocks would read what no plan, or another, has written.
        if self._planned != (num_rows, num_tokens):
            raise KernelError(f"{num_rows} rows and {num_tokens} tokens were not planned; call plan first")
        scale = shape.head_dim**-0.5 if scale is None else scale
        if scale <= 0 or (window is not None and window < 1):
            raise KernelError(f"scores cannot be scaled by {scale} over a window of {window} keys")
        self._check_tokens(out, query)
        self._check_pages(pages)
        self._check_angles(rotary, num_tokens)
        block = self._block
        if isinstance(block, Ring):
            attend = self._rings[block]
            attend(out, query, pages, self._plan, self._num_items, window=window or 0, scale=scale, rotary=rotary)
            return
        self._kernels[block](
            (self._num_items * shape.num_kv_heads, 1),
            (32 * block.warps, 1, 1),
            *(out, query, pages.keys, pages.values, pages.page_table, self._plan),
            *(shape.num_kv_heads, shape.group, 65536 // shape.group + 1),
            *(pages.page_table.shape[1], shape.page_size // UNIT_KEYS, window or 0),
            *(query.stride(0), *pages.strides[:2], scale * math.log2(math.e)),
            *((None, None) if rotary is None else (rotary.cosines, rotary.sines)),
            shared_bytes=self._shared_bytes,
        )

    def _choose(self, num_tokens: int, num_chunks: int) -> Block | Ring:
        """Take the ring for long prompts, and smaller blocks where larger ones would leave multiprocessors without."""
        shape, large = self.shape, self._large
        ring = self._ring or (choose_ring(shape, num_tokens, num_chunks, self._num_sms) if self._rings else None)
        if ring:
            return ring
        num_blocks = -(-num_tokens * shape.group // large.rows) * shape.num_kv_heads
        return self._small if self._small is not None and num_blocks < self._num_sms else large

    def _check_tokens(self, out: Tensor, query: Tensor) -> None:
        shape = self.shape
        expected = (query.shape[0], shape.num_heads, shape.head_dim)
        require(out, "out", expected, shape.dtype)
        if query.shape != expected or query.dtype != shape.dtype or query.stride()[1:] != (shape.head_dim, 1):
            raise KernelError(f"query is {query.dtype} {tuple(query.shape)}, and should be {shape.dtype} {expected}")
        if query.stride(0) * shape.dtype.itemsize % 16 or query.data_ptr() % 16:
            raise KernelError("query's tokens do not begin at multiples of 16 bytes")

    def _check_angles(self, rotary: Rotary | None, num_tokens: int) -> None:
        if (rotary is not None) != self._large.rotates:
            raise KernelError("angles are for attention that rotates, and wanted there")
        if rotary is None:
            return
        if rotary.cosines.shape[0] != num_tokens or not rotary.turns_halves(self.shape.head_dim):
            raise KernelError(f"angles of {tuple(rotary.cosines.shape)} do not turn the heads of {num_tokens} tokens")

    def _check_pages(self, pages: KVPages) -> None:
        shape, keys = self.shape, pages.keys
        if pages.page_shape != (shape.num_kv_heads, shape.page_size, shape.head_dim) or keys.dtype != shape.dtype:
            raise KernelError(f"pages are {keys.dtype} {tuple(keys.shape)}, which does not fit {shape}")
        if pages.strides[2:] != (shape.head_dim, 1):
            raise KernelError(f"pages have strides {pages.strides}: a page's tokens of one head must be contiguous")
        if pages.alignment % 16:
            raise KernelError("keys' or values' heads do not begin at multiples of 16 bytes")


def _open(device: torch.device) -> Device:
    return open_device(torch.cuda.current_device() if device.index is None else device.index)


def _layout(shape: PrefillShape, block: Block) -> list[int]:
    """Bytes of plan and starts."""
    least = block.halved() or block
    sizes = (_ITEM_BYTES * least.num_items(shape.group, shape.max_rows, shape.max_tokens), 4 * (shape.max_rows + 2))
    return [-(-size // 16) * 16 for size in sizes]


@functools.cache
def _plan_kernel(index: int) -> Kernel:
    return load("prefill_plan", "prefill_plan", "PPPPiiiiii", torch.device("cuda", index))


@functools.cache
def _kernel(index: int, dtype: torch.dtype, head_dim: int, block: Block) -> Kernel:
    return load(
        "prefill_attention",
        "prefill_attention",
        "PPPPPPiiiiiiqqqfPP",
        torch.device("cuda", index),
        shared_bytes=block.shared_bytes(dtype, head_dim),
        **block.macros(dtype, head_dim),
    )
