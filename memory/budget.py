"""How much memory the pool has, and into which chunks it is cut. Pure arithmetic, done once, at start."""

import math
from dataclasses import dataclass

from headrace.errors import ConfigurationError

#: Chunks begin at multiples of it, as torch's own allocations do.
ALIGNMENT_BYTES = 512
#: Small enough that activations take little more than they need, large enough that a chunk is many pages.
CHUNK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class KVShape:
    """Keys and values of one model.

    Attributes:
        num_layers: layers of the model.
        num_kv_heads: heads of keys and of values.
        head_dim: numbers a head.
        page_size: tokens of a page.
        element_bytes: bytes of a number.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    element_bytes: int

    @property
    def page_bytes(self) -> int:
        """Bytes of a page, which covers all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.page_size * self.element_bytes

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold the tokens of one row."""
        return -(-num_tokens // self.page_size)


@dataclass(frozen=True, slots=True)
class Budget:
    """A pool.

    Attributes:
        num_chunks: of the pool.
        chunk_pages: pages of a chunk.
        chunk_bytes: bytes of a chunk.
        max_pages: pages that keys and values may take.
        kv_tokens: tokens that they hold beside a step's activations: what can be promised to requests.
    """

    num_chunks: int
    chunk_pages: int
    chunk_bytes: int
    max_pages: int
    kv_tokens: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the pool."""
        return self.num_chunks * self.chunk_bytes


@dataclass(frozen=True, slots=True)
class Needs:
    """What the pool must hold at least.

    Attributes:
        row_tokens: tokens of the longest request, prompt and output.
        step_bytes: activations of the longest step.
        least_step_bytes: activations of a step of one token.
    """

    row_tokens: int
    step_bytes: int
    least_step_bytes: int


def available_bytes(free_bytes: int, weight_bytes: int, fraction: float, reserve_bytes: int) -> int:
    """Bytes of a device that the pool may have, once the weights are loaded.

    Args:
        free_bytes: free now.
        weight_bytes: taken by weights, which were free before.
        fraction: of what was free before the weights came, that may be used in all; in (0, 1].
        reserve_bytes: for libraries' own workspaces.

    Returns:
        Possibly 0 or less.
    """
    return min(free_bytes, int((free_bytes + weight_bytes) * fraction) - weight_bytes) - reserve_bytes


def fill(shape: KVShape, needs: Needs, num_bytes: int, kv_tokens: int | None = None) -> Budget:
    """Cut what a device has left.

    Args:
        shape: of keys and values.
        needs: what must fit at least.
        num_bytes: that the pool may have.
        kv_tokens: tokens of keys and values at most; the pool is no larger than that and the activations want.

    Raises:
        ConfigurationError: one request of full length does not fit.
    """
    chunk_pages = _chunk_pages(shape, max(1, num_bytes // shape.page_bytes // 2))
    chunk_bytes = chunk_pages * shape.page_bytes
    num_chunks = num_bytes // chunk_bytes
    least_pages = shape.pages_for(needs.row_tokens)
    least_chunks = -(-least_pages // chunk_pages) + -(-needs.least_step_bytes // chunk_bytes)
    if num_chunks < least_chunks:
        raise ConfigurationError(
            f"{_mib(num_bytes)} of device memory are left for keys, values and activations, and one request of "
            f"{needs.row_tokens} tokens wants {_mib(least_chunks * chunk_bytes)}: raise memory_fraction, lower "
            "max_context_tokens, or serve a smaller model"
        )
    step_chunks = -(-needs.step_bytes // chunk_bytes)
    num_kv_chunks = max(num_chunks - step_chunks, -(-least_pages // chunk_pages))
    max_pages = num_chunks * chunk_pages
    promised = num_kv_chunks * chunk_pages
    if kv_tokens is not None:
        _check_cap(kv_tokens, needs)
        max_pages = min(max_pages, shape.pages_for(kv_tokens))
        promised = min(promised, max_pages)
        num_chunks = min(num_chunks, -(-max_pages // chunk_pages) + step_chunks)
    kv_tokens = min(promised * shape.page_size, kv_tokens or promised * shape.page_size)
    return Budget(num_chunks, chunk_pages, chunk_bytes, max_pages, kv_tokens)


def hold(shape: KVShape, needs: Needs, kv_tokens: int, chunk_bytes: int = CHUNK_BYTES) -> Budget:
    """Make a pool that holds so many tokens, and a step beside them: for memory that costs nothing before it is used.

    Args:
        shape: of keys and values.
        needs: what must fit at least.
        kv_tokens: tokens of keys and values, rounded up to whole pages.
        chunk_bytes: of a chunk, about.

    Raises:
        ConfigurationError: one request of full length does not fit.
    """
    _check_cap(kv_tokens, needs)
    max_pages = shape.pages_for(kv_tokens)
    chunk_pages = _chunk_pages(shape, max_pages, chunk_bytes)
    size = chunk_pages * shape.page_bytes
    num_chunks = -(-max_pages // chunk_pages) + -(-needs.step_bytes // size)
    return Budget(num_chunks, chunk_pages, size, max_pages, kv_tokens)


def _check_cap(kv_tokens: int, needs: Needs) -> None:
    if kv_tokens < needs.row_tokens:
        raise ConfigurationError(
            f"kv_tokens {kv_tokens} do not hold one request of {needs.row_tokens} tokens: raise kv_tokens, or lower "
            "max_context_tokens"
        )


def _chunk_pages(shape: KVShape, max_pages: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Pages of a chunk: as many as make up its size, no more than are wanted, and so that chunks are aligned."""
    step = ALIGNMENT_BYTES // math.gcd(ALIGNMENT_BYTES, shape.page_bytes)
    wanted = max(1, min(chunk_bytes // shape.page_bytes, max_pages))
    return -(-wanted // step) * step


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.0f} MiB"
