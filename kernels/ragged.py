"""A batch as plain torch attends to it: short rows that decode together, by pages, and others row by row, on views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from headrace.kernels.table import Batch


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one row's context that lie behind each other in the memory: pages with consecutive numbers.

    Attributes:
        start: position of the first of them in the row.
        end: position behind the last of them.
        views: a layer each, keys and values, both of shape ``[1, num_kv_heads, end - start, head_dim]``.
    """

    start: int
    end: int
    views: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one row whose attention is computed together.

    Attributes:
        first_query: index of its first token in the batch.
        num_queries: its tokens in the batch, >= 1; they are the last ones of its context.
        pieces: its context up to and including these tokens, in order. Where there are several queries, the last
            piece is their own, so that it alone is causal; what is new in it is written during the step.
    """

    first_query: int
    num_queries: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """What rows see that decode, as pages.

    Attributes:
        lengths: tokens that each row sees, its own among them, >= 1.
        rows: int64 ``[num_rows]``, which rows of the page table they are.
        page_table: int32 ``[max_rows, max_pages]``, the pages of a row in order.
        page_size: tokens of a page.
        places: says where in a layer's memory slots lie, int64 of any shape; slot ``page * page_size + offset``.
    """

    lengths: tuple[int, ...]
    rows: Tensor
    page_table: Tensor
    page_size: int
    places: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Ragged(Batch):
    """A batch, and where its rows' keys and values lie.

    Attributes:
        slots: int64 ``[num_tokens]``, where in the key-value memory a token's key and value go.
        segments: the other rows, in the order of their tokens; one whose chunk crosses a border of pieces has several.
        layers: a layer's key-value memory each, ``[2, num_slots, num_kv_heads, head_dim]``.
        contexts: of the batch's first tokens, each of which is a row of its own; None where there are none.
    """

    slots: Tensor
    segments: tuple[Segment, ...]
    layers: Sequence[Tensor]
    contexts: Contexts | None = None
