"""One pool of equal chunks that feeds all but the weights: pages of keys and values, activations, workspaces.

The bytes are one allocation, made at start; whoever makes it decides on which device. Chunks are taken as rows grow and
as steps get longer, and given back when nothing is in them any more. Tensors are views of the pool's bytes.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.errors import OutOfMemoryError
from headrace.memory.blocks import ChunkBlocks
from headrace.memory.budget import ALIGNMENT_BYTES, Budget, KVShape
from headrace.memory.chunks import Chunks
from headrace.memory.kv_cache import CopyPages, KVCache, PageOrder
from headrace.memory.pages import Pages
from headrace.memory.workspace import Activation, Workspace


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Where the pool's bytes are.

    Attributes:
        total_bytes: of the pool.
        free_bytes: in chunks that nobody has.
        kv_bytes: in chunks of pages.
        used_page_bytes: of pages that rows use.
        kept_page_bytes: of pages that are kept for rows to come.
        activation_bytes: in chunks of steps' results.
        workspace_bytes: in chunks that kernels have for good.
        num_chunks: chunks in all.
        num_free_chunks: chunks that nobody has.
        num_shuffles: how often pages have moved so far.
        num_moved_pages: how many pages have.
    """

    total_bytes: int
    free_bytes: int
    kv_bytes: int
    used_page_bytes: int
    kept_page_bytes: int
    activation_bytes: int
    workspace_bytes: int
    num_chunks: int
    num_free_chunks: int
    num_shuffles: int
    num_moved_pages: int


class Pool:
    """The memory of one engine.

    Args:
        storage: uint8 ``[budget.num_bytes]``, on the device.
        budget: how it is cut.
        shape: of keys and values.
        dtype: of keys and values.
        order: what lies next to each other in keys and values.
        copy_pages: moves pages on the device; see ``KVCache``.

    Attributes:
        budget: as given.
        pages: who may use which pages.
        kv_cache: what is in them.
        workspace: of activations.
    """

    def __init__(
        self,
        storage: Tensor,
        budget: Budget,
        shape: KVShape,
        dtype: torch.dtype,
        *,
        order: PageOrder = "tokens",
        copy_pages: CopyPages | None = None,
    ) -> None:
        self.budget = budget
        self._storage = storage
        self._chunks = Chunks(budget.num_chunks)
        self.pages = Pages(
            budget.max_pages,
            shape.page_size,
            chunks=self._chunks,
            chunk_pages=budget.chunk_pages,
            read_as_runs=order == "tokens",
        )
        self.kv_cache = KVCache(
            num_layers=shape.num_layers,
            num_pages=budget.num_chunks * budget.chunk_pages,
            page_size=shape.page_size,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=dtype,
            order=order,
            chunk_pages=budget.chunk_pages,
            storage=storage,
            copy_pages=copy_pages,
        )
        self._blocks = ChunkBlocks(storage, budget.chunk_bytes, self._chunks)
        self.workspace = Workspace(self._blocks)
        self._rest = storage[:0]  # of the last chunk given to a kernel for good
        self._num_shuffles = 0
        self._num_moved_pages = 0

    def workspace_for_good(self, num_bytes: int) -> Tensor:
        """Give a kernel memory that it keeps: uint8 ``[num_bytes]``, aligned to 512 bytes, not initialised.

        Raises:
            OutOfMemoryError: there is no room.
        """
        size = -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if size > self._rest.nbytes:
            num_chunks = -(-size // self.budget.chunk_bytes)
            first = self._chunks.find(num_chunks, "workspaces")
            if first is None:
                raise OutOfMemoryError(f"no room for a kernel's workspace of {num_bytes} bytes: raise memory_fraction")
            self._chunks.take(first, num_chunks, "workspaces")
            self._rest = self._blocks.bytes_of(first, num_chunks)
        given, self._rest = self._rest[:num_bytes], self._rest[size:]
        return given

    def make_room(self, lengths: Hashable, activations: Callable[[], Sequence[Activation]]) -> bool:
        """Make room for a step's activations, between two steps: from free chunks, else from keys and values.

        These give up kept pages first, and then move pages, as few as possible, until whole chunks are free. No row
        loses anything.

        Args:
            lengths: names the greatest lengths that the next step may have.
            activations: gives their activations.

        Returns:
            Whether there is room; if not, rows must give pages back, or the step must be shorter.
        """
        missing = self.workspace.prepare(lengths, activations)
        if missing and self._set_aside([size // self.budget.chunk_bytes for size in missing]):
            missing = self.workspace.prepare(lengths, activations)
        self._blocks.put_back()
        return not missing

    def free_chunks(self, num_chunks: int, *, adjacent: bool) -> bool:
        """Free chunks by giving up kept pages and moving others, between two steps.

        Args:
            num_chunks: how many.
            adjacent: whether they must lie next to each other.

        Returns:
            Whether they are free; if not, no page has moved.
        """
        moves = self.pages.free_chunks(num_chunks, adjacent=adjacent)
        if moves is None:
            return False
        if moves:
            self.kv_cache.move(moves)
            self._num_shuffles += 1
            self._num_moved_pages += len(moves)
        return True

    def memory_info(self) -> MemoryInfo:
        """Say where the bytes are."""
        chunk_bytes, page_bytes = self.budget.chunk_bytes, self.kv_cache.page_bytes
        return MemoryInfo(
            total_bytes=self.budget.num_bytes,
            free_bytes=self._chunks.num_free * chunk_bytes,
            kv_bytes=self._chunks.count("kv") * chunk_bytes,
            used_page_bytes=self.pages.num_used * page_bytes,
            kept_page_bytes=self.pages.num_kept * page_bytes,
            activation_bytes=self._chunks.count("activations") * chunk_bytes,
            workspace_bytes=self._chunks.count("workspaces") * chunk_bytes,
            num_chunks=len(self._chunks),
            num_free_chunks=self._chunks.num_free,
            num_shuffles=self._num_shuffles,
            num_moved_pages=self._num_moved_pages,
        )

    def _set_aside(self, sizes: Sequence[int]) -> bool:
        """Free runs of so many chunks for blocks; False where there is no room for all."""
        for num_chunks in sorted((size for size in sizes if size > 1), reverse=True):
            if not self.free_chunks(num_chunks, adjacent=True) or not self._blocks.set_aside(num_chunks):
                return False
        num_single = sum(size == 1 for size in sizes)
        if num_single and not self.free_chunks(num_single, adjacent=False):
            return False
        return all(self._blocks.set_aside(1) for _ in range(num_single))
