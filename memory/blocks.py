"""Blocks of memory for a workspace: runs of the pool's chunks."""

from collections.abc import Sequence

from torch import Tensor

from headrace.memory.chunks import Chunks


class ChunkBlocks:
    """Blocks that are whole chunks of a pool; see ``workspace.Blocks``.

    Args:
        storage: uint8, the pool's bytes.
        chunk_bytes: bytes of a chunk.
        chunks: who has which.
    """

    def __init__(self, storage: Tensor, chunk_bytes: int, chunks: Chunks) -> None:
        self._storage = storage
        self._chunk_bytes = chunk_bytes
        self._chunks = chunks
        self._aside: list[tuple[int, int]] = []  # first chunk, number of chunks

    def size(self, num_bytes: int) -> int:
        """Round up to whole chunks."""
        return -(-num_bytes // self._chunk_bytes) * self._chunk_bytes

    def bytes_of(self, first: int, num_chunks: int) -> Tensor:
        """View the bytes of a run."""
        return self._storage[first * self._chunk_bytes : (first + num_chunks) * self._chunk_bytes]

    def set_aside(self, num_chunks: int) -> bool:
        """Take a run of free chunks for a ``take`` that is about to come; False if there is none."""
        run = self._find(num_chunks)
        if run is not None:
            self._aside.append(run)
        return run is not None

    def put_back(self) -> None:
        """Give back what was set aside and not taken."""
        for first, num_chunks in self._aside:
            self._chunks.give_back(first, num_chunks, "activations")
        self._aside.clear()

    def take(self, sizes: Sequence[int]) -> list[Tensor] | None:
        """Give blocks, from what was set aside first; None, and nothing is taken, where there is no room for all."""
        runs: dict[int, tuple[int, int]] = {}
        for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            num_chunks = sizes[index] // self._chunk_bytes
            run = next((run for run in self._aside if run[1] == num_chunks), None)
            if run is not None:
                self._aside.remove(run)
            else:
                run = self._find(num_chunks)
            if run is None:
                for first, num_taken in runs.values():
                    self._chunks.give_back(first, num_taken, "activations")
                return None
            runs[index] = run
        return [self.bytes_of(*runs[index]) for index in range(len(sizes))]

    def shrink(self, block: Tensor, num_bytes: int) -> Tensor | None:
        """Give back the chunks that lie behind the first ``num_bytes`` of a block."""
        first = (block.storage_offset() - self._storage.storage_offset()) // self._chunk_bytes
        num_chunks, num_left = block.nbytes // self._chunk_bytes, -(-num_bytes // self._chunk_bytes)
        self._chunks.give_back(first + num_left, num_chunks - num_left, "activations")
        return self.bytes_of(first, num_left) if num_left else None

    def _find(self, num_chunks: int) -> tuple[int, int] | None:
        first = self._chunks.find(num_chunks, "activations")
        if first is None:
            return None
        self._chunks.take(first, num_chunks, "activations")
        return first, num_chunks
