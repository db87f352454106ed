"""Attention of decoding rows: one query token a row over its keys and values in pages.

``cuda/decode_attention.cu`` reads, ``cuda/decode_plan.cu`` shares the work out, ``reference_attention`` is the oracle.
Once a step ``plan``, then once a layer ``run``: both read lengths on the device, so that a captured graph serves rows
of any length.
"""

import functools
import math

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.build import C_TYPES, Macro
from headrace.kernels.checks import require
from headrace.kernels.decode_shape import RESERVED_BYTES, TILE_KEYS, DecodeShape, Ring, choose_ring
from headrace.kernels.device import Device, open_device
from headrace.kernels.heads import HeadNorm, Heads, heads_of
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.launch import Argument, Kernel, load
from headrace.kernels.rotary import Rotary

_PLAN_THREADS = 512
_FEW_ROWS = 4096  # as decode_plan.cu has it
_QUARTER_REGISTERS = 16384  # of a multiprocessor's quarter, which has whole warps


class DecodeAttention:
    """Decode attention of one shape on one GPU, with the memory that it needs.

    One object serves one step at a time: its workspace holds the step's plan and unfinished sums.

    Args:
        shape: what all steps have in common.
        device: a GPU; without an index, torch's current one.
        workspace: uint8, at least ``workspace_bytes`` long, 16-byte aligned; default: torch allocates it.
        ring: default: what was measured to be the fastest for ``max_rows`` rows (docs/bench/decode_attention.md).
        heads: given, ``run_fused`` serves the object's steps; None: ``run`` does.

    Raises:
        KernelError: the workspace is too small, or the GPU's shared memory is.
    """

    def __init__(
        self,
        shape: DecodeShape,
        device: torch.device,
        workspace: Tensor | None = None,
        ring: Ring | None = None,
        heads: Heads | None = None,
    ) -> None:
        opened = _open(device)
        self.shape = shape
        self._heads = heads
        self._ring = ring or _ring(shape, opened, heads)
        self._shared_bytes = self._ring.shared_bytes(shape, fused=heads is not None)
        self._plan_kernel = _plan_kernel(opened.index)
        self._kernel = _kernel(opened.index, shape.dtype, shape.head_dim, shape.group, self._ring, heads)
        self._num_shares, sizes = _layout(shape, self._ring, opened, self._kernel, heads)
        if workspace is None:
            workspace = torch.empty(sum(sizes), dtype=torch.uint8, device=torch.device("cuda", opened.index))
        if workspace.nbytes < sum(sizes) or workspace.data_ptr() % 16:
            raise KernelError(f"decode attention wants {sum(sizes)} aligned bytes of workspace")
        used = workspace.view(torch.uint8)[: sum(sizes)]
        self._plan, self._starts, self._tickets, self._slots = torch.split_with_sizes(used, sizes)
        self._tickets.zero_()

    @staticmethod
    def workspace_bytes(
        shape: DecodeShape, device: torch.device, ring: Ring | None = None, heads: Heads | None = None
    ) -> int:
        """How much workspace an object wants on a GPU."""
        opened = _open(device)
        ring = ring or _ring(shape, opened, heads)
        kernel = _kernel(opened.index, shape.dtype, shape.head_dim, shape.group, ring, heads)
        return sum(_layout(shape, ring, opened, kernel, heads)[1])

    @staticmethod
    def load(shape: DecodeShape, device: torch.device, ring: Ring, heads: Heads | None = None) -> None:
        """Compile, or find in the cache, what ``run_fused`` of such an object launches; without heads, ``run``."""
        _kernel(_open(device).index, shape.dtype, shape.head_dim, shape.group, ring, heads)

    def plan(self, lengths: Tensor) -> None:
        """Share a step's work out, on torch's current stream; valid until lengths change.

        Args:
            lengths: int32 ``[num_rows]``, keys each row has, this step's own included; 0: a row that is padding.

        Raises:
            KernelError: dtype or shape do not fit.
        """
        num_rows = self._check_lengths(lengths)
        num_blocks = self._num_blocks(num_rows)
        self._plan_kernel(
            (-(-num_blocks // _PLAN_THREADS) if num_rows <= _FEW_ROWS else 1, 1),
            (_PLAN_THREADS, 1, 1),
            *(self._plan, self._starts, lengths, num_rows, self.shape.num_kv_heads, self.shape.window or 0),
            *(self._num_shares, num_blocks),
            *(self._ring.least_tiles if self.shape.segment_tokens is None else 1, self._ring.whole_tiles),
            self.shape.segment_tiles,
        )

    def _num_blocks(self, num_rows: int) -> int:
        """Blocks of a launch: as many as run at once, or one for each pair of a row and a head of keys."""
        items = num_rows * self.shape.num_kv_heads if self._ring.whole_tiles else 0
        return max(self._num_shares, items)

    def run(
        self,
        out: Tensor,
        query: Tensor,
        pages: KVPages,
        lengths: Tensor,
        *,
        scale: float | None = None,
        old_is_settled: bool = False,
    ) -> None:
        """Attend in one layer, on torch's current stream, after ``plan`` of the same lengths.

        Args:
            out: ``[num_rows, num_heads, head_dim]``, contiguous; padding rows become zeros.
            query: the same shape; rows may be strided (a slice of a wider tensor).
            pages: keys and values; a page's tokens of one head are contiguous, pages and heads may be strided. Only
                pages that a row's length (and window) reaches are looked up.
            lengths: as given to ``plan``.
            scale: of scores; default: ``head_dim ** -0.5``.
            old_is_settled: a promise that matters only in a programmatic launch, which may begin before the kernel
                before it has ended: lengths, plan, page table, and all keys and values but each row's newest are
                complete before any kernel still running was launched. They are then read before that one ends.

        Raises:
            KernelError: shapes, dtypes or layouts do not fit.
        """
        shape, num_rows = self.shape, lengths.shape[0]
        if self._heads is not None:
            raise KernelError("this attention rotates by itself; call run_fused")
        expected = (num_rows, shape.num_heads, shape.head_dim)
        if query.shape != expected or query.dtype != shape.dtype or query.stride()[1:] != (shape.head_dim, 1):
            raise KernelError(f"query is {query.dtype} {tuple(query.shape)}, and should be {shape.dtype} {expected}")
        if query.stride(0) % 2 or query.data_ptr() % 4:
            raise KernelError("query's rows do not begin at multiples of 4 bytes")
        self._launch(out, query, pages, lengths, scale, old_is_settled)

    def run_fused(
        self,
        out: Tensor,
        qkv: Tensor,
        pages: KVPages,
        lengths: Tensor,
        *,
        rotary: Rotary | None = None,
        norm: HeadNorm | None = None,
        scale: float | None = None,
        old_is_settled: bool = False,
    ) -> None:
        """Norm and rotate, write each row's newest key and value, and attend: ``rotary_kv`` and ``run`` in one launch.

        Args:
            out: as for ``run``.
            qkv: ``[num_rows, (num_heads + 2 * num_kv_heads) * head_dim]``, contiguous: query heads, key heads, value
                heads of each row's newest token, which is the row's last by ``lengths``.
            pages: as for ``run``; the newest token's place is written.
            lengths: as given to ``plan``; a row of length 0 writes nothing.
            rotary: angles of the rows' newest tokens; None for models without rotation.
            norm: weights of the heads' norms; None for models without.
            scale: as for ``run``.
            old_is_settled: as for ``run``; ``rotary`` is read early, too.

        Raises:
            KernelError: shapes, dtypes or layouts do not fit, or not the heads that the object is for.
        """
        shape, num_rows = self.shape, lengths.shape[0]
        if self._heads != heads_of(shape.head_dim, rotary, norm is not None, shape.dtype.itemsize):
            raise KernelError(f"this attention is for {self._heads}")
        if rotary is not None and rotary.cosines.shape[0] != num_rows:
            raise KernelError(f"there are angles of {rotary.cosines.shape[0]} rows, not of {num_rows}")
        if norm is not None and (norm.query.dtype != shape.dtype or norm.query.shape != (shape.head_dim,)):
            raise KernelError(f"norms are {norm.query.dtype} {tuple(norm.query.shape)}, and do not fit {shape}")
        width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        require(qkv, "qkv", (num_rows, width), shape.dtype)
        angles = (None, None) if rotary is None else (rotary.cosines, rotary.sines)
        weights = (None, None, 0.0) if norm is None else (norm.query, norm.key, norm.eps)
        self._launch(*(out, qkv, pages, lengths, scale, old_is_settled), pages.keys, pages.values, *angles, *weights)

    def _launch(
        self,
        out: Tensor,
        query: Tensor,
        pages: KVPages,
        lengths: Tensor,
        scale: float | None,
        old_is_settled: bool,
        *more: Argument,
    ) -> None:
        shape, num_rows = self.shape, self._check_lengths(lengths)
        require(out, "out", (num_rows, shape.num_heads, shape.head_dim), shape.dtype)
        require(pages.page_table, "page_table", (num_rows, shape.max_pages), torch.int32, alignment=4)
        self._check_pages(pages)
        self._kernel(
            (self._num_blocks(num_rows), 1),
            (self._ring.warps * 32, 1, 1),
            *(out, query, pages.keys, pages.values, pages.page_table, lengths),
            *(self._plan, self._slots, self._tickets),
            *(num_rows, shape.num_kv_heads, shape.max_pages, shape.page_size // TILE_KEYS, shape.window or 0),
            *(query.stride(0), *pages.strides[:2]),
            (shape.head_dim**-0.5 if scale is None else scale) * math.log2(math.e),
            int(old_is_settled),
            *more,
            shared_bytes=self._shared_bytes,
        )

    def _check_lengths(self, lengths: Tensor) -> int:
        num_rows = lengths.shape[0]
        if not 1 <= num_rows <= self.shape.max_rows:
            raise KernelError(f"{num_rows} rows where there is room for {self.shape.max_rows}")
        require(lengths, "lengths", (num_rows,), torch.int32, alignment=4)
        return num_rows

    def _check_pages(self, pages: KVPages) -> None:
        shape, keys = self.shape, pages.keys
        if pages.page_shape != (shape.num_kv_heads, shape.page_size, shape.head_dim) or keys.dtype != shape.dtype:
            raise KernelError(f"pages are {keys.dtype} {tuple(keys.shape)}, which does not fit {shape}")
        if pages.strides[2:] != (shape.head_dim, 1):
            raise KernelError(f"pages have strides {pages.strides}")
        if pages.alignment % 16:
            raise KernelError("keys' or values' heads do not begin at multiples of 16 bytes")


def _open(device: torch.device) -> Device:
    return open_device(torch.cuda.current_device() if device.index is None else device.index)


def _ring(shape: DecodeShape, device: Device, heads: Heads | None) -> Ring:
    return choose_ring(shape, shape.max_rows, device.shared_bytes, device.num_sms, fused=heads is not None)


def _layout(
    shape: DecodeShape, ring: Ring, device: Device, kernel: Kernel, heads: Heads | None = None
) -> tuple[int, list[int]]:
    """Count the shares, as many as run at once, and the bytes of plan, starts, tickets and slots."""
    shared_bytes = ring.shared_bytes(shape, fused=heads is not None)
    by_shared = (device.shared_bytes + RESERVED_BYTES) // (shared_bytes + RESERVED_BYTES)
    warps_a_quarter = _QUARTER_REGISTERS // (-(-kernel.num_registers // 8) * 8 * 32)
    by_registers = 4 * warps_a_quarter // ring.warps
    num_shares = device.num_sms * min(by_shared, by_registers)
    num_slots = shape.num_slots(num_shares)
    sizes = (
        16 * (1 + 2 * max(num_shares, shape.num_items if ring.whole_tiles else 0)),
        4 * (shape.max_rows + 1),
        4 * (shape.num_items + num_slots),
        num_slots * shape.slot_bytes,
    )
    return num_shares, [-(-size // 16) * 16 for size in sizes]


@functools.cache
def _plan_kernel(index: int) -> Kernel:
    return load("decode_plan", "decode_plan", "PPPiiiiiiii", torch.device("cuda", index))


@functools.cache
def _kernel(
    index: int, dtype: torch.dtype, head_dim: int, group: int, ring: Ring, heads: Heads | None = None
) -> Kernel:
    more: dict[str, Macro] = {"FUSED": 0}
    if heads is not None:
        more = {
            "FUSED": 1,
            "ROTARY_DIM": heads.rotary_dim,
            "INTERLEAVED": int(heads.interleaved),
            "NORMED": int(heads.normed),
            "VEC": heads.vec,
            "LANES": heads.lanes,
        }
    return load(
        "decode_attention",
        "decode_attention",
        "PPPPPPPPPiiiiiqqqfi" + ("" if heads is None else "PPPPPPf"),
        torch.device("cuda", index),
        shared_bytes=open_device(index).shared_bytes,
        DTYPE=C_TYPES[dtype],
        IS_FP32=int(dtype == torch.float32),
        HEAD_DIM=head_dim,
        GROUP=group,
        WARPS=ring.warps,
        STAGES=ring.stages,
        BLOCKS=ring.least_blocks,
        **more,
    )
