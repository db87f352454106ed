"""Attention of rows that decode, in plain torch: all rows by five calls a layer, keys and values read where they lie.

Called row by row, torch's attention of a short context takes several times as long as reading its keys and values
would, and most steps of an engine are many rows of short contexts. Here each query head looks its keys up by their
places: a dense product that is sampled where a sparse matrix has entries gives the scores, and a bag of embeddings,
weighted by the softmax of the scores, is the sum of the values. Neither copies a key or a value, and neither asks for
places that follow each other.

A head's numbers follow from its own row alone, to the bit: its scores are a product each, its softmax is a row of a
matrix padded with minus infinity, its values are added one by one.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.ragged import Contexts

# torch says once a process that sparse matrices in this layout are in beta.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))


# Padded scores fill the widest vectors that a CPU has, so that what is added to what in a softmax does not depend on
# how far they are padded.
_LANES = 16


@dataclass(frozen=True, slots=True)
class _Index:
    """Where a step's heads look: alike in all layers. A segment is one query head of one row.

    Attributes:
        scores: fp32 ``[num_scores]``, of all segments, one behind the other; followed by one of minus infinity.
        pattern: the scores as a sparse matrix ``[num_segments, num_places * num_kv_heads]``.
        starts: int64 ``[num_segments + 1]``, where each segment's scores begin.
        places: int64 ``[num_scores]``, of each score's key: ``place * num_kv_heads + head``.
        spread: int64 ``[num_padded]``, for each padded score where it comes from.
        collect: int64 ``[num_scores]``, for each score where it lies among the padded ones.
        padded: fp32 ``[num_padded]``.
        blocks: ``padded`` as matrices with a segment a row, each of segments of similar length.
    """

    scores: Tensor
    pattern: Tensor
    starts: Tensor
    places: Tensor
    spread: Tensor
    collect: Tensor
    padded: Tensor
    blocks: tuple[Tensor, ...]


class LookupAttention:
    """Attention of one shape of heads through one window.

    Its memory stays from step to step and grows with the contexts.

    Args:
        num_kv_heads: heads of keys and of values.
        group: query heads that share one of them.
        window: tokens that a token sees at most, itself among them; None for all.
    """

    def __init__(self, num_kv_heads: int, group: int, window: int | None) -> None:
        self._num_kv_heads = num_kv_heads
        self._group = group
        self._window = window
        self._memory: dict[str, Tensor] = {}
        self._made: tuple[Contexts, _Index] | None = None

    def attend(self, query: Tensor, memory: Tensor, contexts: Contexts, out: Tensor) -> None:
        """Let each row's token see the row's context.

        Args:
            query: fp32 ``[num_rows, num_heads, head_dim]``; heads may lie anywhere.
            memory: a layer's keys and values, fp32 ``[2, num_places, num_kv_heads, head_dim]``.
            contexts: of the rows.
            out: fp32 ``[num_rows, num_heads, head_dim]``, contiguous.
        """
        num_rows, _, head_dim = query.shape
        heads = num_rows, self._num_kv_heads, self._group, head_dim
        if self._made is None or self._made[0] is not contexts:
            self._made = contexts, self._index(contexts, memory.shape[1])
        index = self._made[1]
        # Segments are ordered by head, row, and member of the group.
        queries = self._take("queries", query.numel(), torch.float32)
        queries.view(self._num_kv_heads, num_rows, self._group, head_dim).copy_(query.view(heads).transpose(0, 1))
        keys, values = memory[0].view(-1, head_dim), memory[1].view(-1, head_dim)
        # What stands there is multiplied by zero, and a row's undefined numbers would stay for all that follow.
        index.scores[:-1].zero_()
        torch.sparse.sampled_addmm(
            index.pattern, queries.view(-1, head_dim), keys.T, beta=0.0, alpha=head_dim**-0.5, out=index.pattern
        )
        torch.index_select(index.scores, 0, index.spread, out=index.padded)
        for block in index.blocks:
            torch.softmax(block, dim=-1, out=block)
        weights = torch.index_select(index.padded, 0, index.collect, out=index.scores[:-1])
        # Scale by frequency: no; mode: sum; sparse: no; the starts include the end.
        seen = torch.embedding_bag(values, index.places, index.starts, False, 0, False, weights, True)[0]
        out.view(heads).copy_(seen.view(self._num_kv_heads, num_rows, self._group, head_dim).transpose(0, 1))

    def _index(self, contexts: Contexts, num_places: int) -> _Index:
        """Say where to look; a segment's head is added last, for all heads of keys look alike."""
        num_kv_heads, group = self._num_kv_heads, self._group
        segments = _Segments(contexts, self._window, group, num_kv_heads)
        num_alike, num_scores = segments.num_scores, num_kv_heads * segments.num_scores
        heads = torch.arange(num_kv_heads)[:, None]

        owner, inside, slots, spare = (self._take(name, num_alike) for name in ("owner", "inside", "slots", "spare"))
        owner.zero_().index_fill_(0, segments.starts[1:], 1).cumsum_(0)

        def of_owner(values: Tensor) -> Tensor:
            return torch.index_select(values, 0, owner, out=spare)

        torch.arange(num_alike, out=inside).sub_(of_owner(segments.starts))
        # A score's position in its row, from there the page, and from there the slot.
        torch.add(inside, of_owner(segments.skipped), out=slots)
        entries = torch.div(slots, contexts.page_size, rounding_mode="floor", out=self._take("entries", num_alike))
        entries.add_(of_owner(segments.rows), alpha=contexts.page_table.shape[1])
        pages = self._take("pages", num_alike, contexts.page_table.dtype)
        torch.index_select(contexts.page_table.view(-1), 0, entries, out=pages)
        slots.remainder_(contexts.page_size).add_(pages, alpha=contexts.page_size)
        slots = contexts.places(slots)

        places = self._take("places", num_scores)
        torch.add(heads, slots, alpha=num_kv_heads, out=places.view(num_kv_heads, -1))
        collect = self._take("collect", num_scores)
        torch.mul(heads, of_owner(segments.block_sizes), out=collect.view(num_kv_heads, -1))
        collect.view(num_kv_heads, -1).add_(inside.add_(of_owner(segments.padded_starts)))

        starts = torch.empty(num_kv_heads * len(segments.starts) + 1, dtype=torch.int64)
        torch.add(heads * num_alike, segments.starts, out=starts[:-1].view(num_kv_heads, -1))
        starts[-1] = num_scores

        spread = self._take("spread", segments.num_padded).fill_(num_scores)
        spread.index_copy_(0, collect, torch.arange(num_scores, out=self._take("numbers", num_scores)))
        scores = self._take("scores", num_scores + 1, torch.float32)
        scores[-1] = -torch.inf
        padded = self._take("padded", segments.num_padded, torch.float32)
        size = num_kv_heads * len(segments.starts), num_places * num_kv_heads
        pattern = torch.sparse_csr_tensor(starts, places, scores[:-1], size=size, check_invariants=False)
        return _Index(scores, pattern, starts, places, spread, collect, padded, segments.blocks_of(padded))

    def _take(self, name: str, num_values: int, dtype: torch.dtype = torch.int64) -> Tensor:
        memory = self._memory.get(name)
        if memory is None or memory.numel() < num_values:
            memory = self._memory[name] = torch.empty(num_values + num_values // 2, dtype=dtype)
        return memory[:num_values]


class _Segments:
    """A step's segments as one head of keys sees them: a row's group, row by row.

    Attributes:
        num_scores: scores of all of them.
        num_padded: of all of them and all heads of keys, padded.
        starts: int64 ``[num_segments]``, like all that follow; where its scores begin.
        rows: its row in the page table.
        skipped: tokens of the row that the window leaves out.
        padded_starts: where its padded scores begin for the first head of keys.
        block_sizes: how much further on those for the next head begin.
    """

    def __init__(self, contexts: Contexts, window: int | None, group: int, num_kv_heads: int) -> None:
        seen = [min(length, window or length) for length in contexts.lengths]
        widths: dict[int, int] = {}
        sizes: dict[int, int] = {}
        for length in seen:
            kind = _kind(length)
            widths[kind] = max(widths.get(kind, 0), -(-length // _LANES) * _LANES)
            sizes[kind] = sizes.get(kind, 0) + group
        begins, self.num_padded = {}, 0
        for kind in widths:
            begins[kind] = self.num_padded
            self.num_padded += num_kv_heads * sizes[kind] * widths[kind]
        self._blocks = [(begins[kind], num_kv_heads * sizes[kind], widths[kind]) for kind in widths]
        starts, skipped, padded_starts, block_sizes = [], [], [], []
        self.num_scores = 0
        next_padded = dict(begins)
        for length, num_seen in zip(contexts.lengths, seen, strict=True):
            kind = _kind(num_seen)
            for _ in range(group):
                starts.append(self.num_scores)
                skipped.append(length - num_seen)
                padded_starts.append(next_padded[kind])
                block_sizes.append(sizes[kind] * widths[kind])
                self.num_scores += num_seen
                next_padded[kind] += widths[kind]
        numbers = torch.tensor((starts, skipped, padded_starts, block_sizes))
        self.starts, self.skipped, self.padded_starts, self.block_sizes = numbers.unbind(0)
        self.rows = contexts.rows.repeat_interleave(group)

    def blocks_of(self, padded: Tensor) -> tuple[Tensor, ...]:
        """Cut padded scores into matrices."""
        return tuple(padded[first : first + rows * width].view(rows, width) for first, rows, width in self._blocks)


def _kind(length: int) -> int:
    """Lengths of one kind are padded together: up to 128 tokens, and from there up to twice as many."""
    return max(7, (length - 1).bit_length())
