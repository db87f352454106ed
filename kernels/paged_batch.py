"""What a step on a GPU computes, and how large it may be."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from headrace.kernels.kv_pages import KVPages
from headrace.kernels.table import Batch


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
    is computed for it means nothing. Of a chunk the last token alone may be sampled, and where there are none, every
    token is, in its order.

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
