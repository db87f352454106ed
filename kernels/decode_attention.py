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
from headrace.kernels.build import C_TYPES
from headrace.kernels.checks import require
from headrace.kernels.decode_shape import RESERVED_BYTES, TILE_KEYS, DecodeShape, Ring, choose_ring
from headrace.kernels.device import Device, open_device
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rotary_kv import KVPages

_PLAN_THREADS = 512
_REGISTERS = 65536  # of a multiprocessor


class DecodeAttention:
    """Decode attention of one shape on one GPU, with the memory that it needs.

    One object serves one step at a time: its workspace holds the step's plan and unfinished sums.

    Args:
        shape: what all steps have in common.
        device: a GPU; without an index, torch's current one.
        workspace: uint8, at least ``workspace_bytes`` long, 16-byte aligned; default: torch allocates it.
        ring: default: what was measured to be the fastest (docs/bench/decode_attention.md).

    Raises:
        KernelError: the workspace is too small, or the GPU's shared memory is.
    """

    def __init__(
        self, shape: DecodeShape, device: torch.device, workspace: Tensor | None = None, ring: Ring | None = None
    ) -> None:
        opened = _open(device)
        self.shape = shape
        self._ring = ring or choose_ring(shape, opened.shared_bytes)
        self._plan_kernel = _plan_kernel(opened.index)
        self._kernel = _kernel(opened.index, shape.dtype, shape.head_dim, shape.group, self._ring)
        self._num_shares, sizes = _layout(shape, self._ring, opened, self._kernel)
        if workspace is None:
            workspace = torch.empty(sum(sizes), dtype=torch.uint8, device=torch.device("cuda", opened.index))
        if workspace.nbytes < sum(sizes) or workspace.data_ptr() % 16:
            raise KernelError(f"decode attention wants {sum(sizes)} aligned bytes of workspace")
        used = workspace.view(torch.uint8)[: sum(sizes)]
        self._plan, self._starts, self._tickets, self._slots = torch.split_with_sizes(used, sizes)
        self._tickets.zero_()

    @staticmethod
    def workspace_bytes(shape: DecodeShape, device: torch.device) -> int:
        """How much workspace an object wants on a GPU."""
        opened = _open(device)
        ring = choose_ring(shape, opened.shared_bytes)
        kernel = _kernel(opened.index, shape.dtype, shape.head_dim, shape.group, ring)
        return sum(_layout(shape, ring, opened, kernel)[1])

    def plan(self, lengths: Tensor) -> None:
        """Share a step's work out, on torch's current stream; valid until lengths change.

        Args:
            lengths: int32 ``[num_rows]``, keys each row has, this step's own included; 0: a row that is padding.

        Raises:
            KernelError: dtype or shape do not fit.
        """
        num_rows = self._check_lengths(lengths)
        self._plan_kernel(
            (1, 1),
            (_PLAN_THREADS, 1, 1),
            *(self._plan, self._starts, lengths, num_rows, self.shape.num_kv_heads, self.shape.window or 0),
            *(self._num_shares, self._ring.least_tiles if self.shape.segment_tokens is None else 1),
            self.shape.segment_tiles,
        )

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
        shape, num_rows = self.shape, self._check_lengths(lengths)
        expected = (num_rows, shape.num_heads, shape.head_dim)
        require(out, "out", expected, shape.dtype)
        require(pages.page_table, "page_table", (num_rows, shape.max_pages), torch.int32, alignment=4)
        if query.shape != expected or query.dtype != shape.dtype or query.stride()[1:] != (shape.head_dim, 1):
            raise KernelError(f"query is {query.dtype} {tuple(query.shape)}, and should be {shape.dtype} {expected}")
        if query.stride(0) % 2 or query.data_ptr() % 4:
            raise KernelError("query's rows do not begin at multiples of 4 bytes")
        self._check_pages(pages)
        self._kernel(
            (self._num_shares, 1),
            (self._ring.warps * 32, 1, 1),
            *(out, query, pages.keys, pages.values, pages.page_table, lengths),
            *(self._plan, self._slots, self._tickets),
            *(num_rows, shape.num_kv_heads, shape.max_pages, shape.page_size // TILE_KEYS, shape.window or 0),
            *(query.stride(0), pages.keys.stride(0), pages.keys.stride(1)),
            (shape.head_dim**-0.5 if scale is None else scale) * math.log2(math.e),
            int(old_is_settled),
            shared_bytes=self._ring.shared_bytes(shape),
        )

    def _check_lengths(self, lengths: Tensor) -> int:
        num_rows = lengths.shape[0]
        if not 1 <= num_rows <= self.shape.max_rows:
            raise KernelError(f"{num_rows} rows where there is room for {self.shape.max_rows}")
        require(lengths, "lengths", (num_rows,), torch.int32, alignment=4)
        return num_rows

    def _check_pages(self, pages: KVPages) -> None:
        shape = self.shape
        for name, x in (("keys", pages.keys), ("values", pages.values)):
            if x.shape[1:] != (shape.num_kv_heads, shape.page_size, shape.head_dim) or x.dtype != shape.dtype:
                raise KernelError(f"{name} are {x.dtype} {tuple(x.shape)}, which does not fit {shape}")
            if x.stride() != pages.keys.stride() or x.stride()[2:] != (shape.head_dim, 1):
                raise KernelError(f"{name} have strides {x.stride()}")
            if x.data_ptr() % 16 or any(stride * shape.dtype.itemsize % 16 for stride in x.stride()[:2]):
                raise KernelError(f"{name}' heads do not begin at multiples of 16 bytes")


def _open(device: torch.device) -> Device:
    return open_device(torch.cuda.current_device() if device.index is None else device.index)


def _layout(shape: DecodeShape, ring: Ring, device: Device, kernel: Kernel) -> tuple[int, list[int]]:
    """Count the shares, as many as run at once, and the bytes of plan, starts, tickets and slots."""
    by_shared = (device.shared_bytes + RESERVED_BYTES) // (ring.shared_bytes(shape) + RESERVED_BYTES)
    by_registers = _REGISTERS // (-(-kernel.num_registers // 8) * 8 * ring.warps * 32)
    num_shares = device.num_sms * min(by_shared, by_registers)
    sizes = (
        16 * (1 + 2 * num_shares),
        4 * (shape.max_rows + 1),
        4 * shape.num_items,
        shape.num_slots(num_shares) * shape.slot_bytes,
    )
    return num_shares, [-(-size // 16) * 16 for size in sizes]


@functools.cache
def _plan_kernel(index: int) -> Kernel:
    return load("decode_plan", "decode_plan", "PPPiiiiii", torch.device("cuda", index))


@functools.cache
def _kernel(index: int, dtype: torch.dtype, head_dim: int, group: int, ring: Ring) -> Kernel:
    return load(
        "decode_attention",
        "decode_attention",
        "PPPPPPPPPiiiiiqqqfi",
        torch.device("cuda", index),
        shared_bytes=open_device(index).shared_bytes,
        DTYPE=C_TYPES[dtype],
        IS_FP32=int(dtype == torch.float32),
        HEAD_DIM=head_dim,
        GROUP=group,
        WARPS=ring.warps,
        STAGES=ring.stages,
    )
