"""What a device knows of the rows in flight, a place each: their pages, how far they are, how they draw.

Each row has a place as long as others do not need it, and its place in all tensors says the same. Once a row decodes,
the host writes nothing but its new pages: positions move on and drawn tokens arrive on the device itself, so that
the next step can be started before the host has seen them.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from weakref import ref

import torch

from headrace.kernels import reference_state, row_state
from headrace.kernels.row_state import NextTokens
from headrace.workers.engine.penalties import Penalties
from headrace.workers.engine.places import Places
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.sampling_state import SamplingState
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.state_memory import StateMemory


@dataclass(slots=True)
class _Known:
    """What the tensors say of one row, once the steps that were started are done.

    Attributes:
        row: whose place it is.
        number: the row's.
        position: of the next token to compute.
        num_tokens: of the row, up to the one in ``last_token``; 0 where that is another row's, or none.
        num_pages: in the page table.
        generation: of the row's pages, when they were written.
    """

    row: "ref[Sequence]"
    number: int
    position: int = -1
    num_tokens: int = 0
    num_pages: int = 0
    generation: int = -1


class RowState:
    """Places for rows.

    Args:
        max_rows: rows of one step at most.
        max_pages: pages of one row at most.
        device: of the tensors.

    Attributes:
        last_token: int64 ``[max_rows]``, the token that a decoding row computes next.
        position: int64 ``[max_rows]``, tokens of a row that are computed.
        source: int32 ``[max_rows]``, whose ``last_token`` a place reads: its own, unless its row has just moved.
        decodes: int32 ``[max_rows]``, 1 where a row decodes in the step at hand, else 0.
        page_table: int32 ``[max_rows, max_pages]``, a row's pages in order; what is behind the last one means nothing.
        sampling: how the rows draw.
    """

    def __init__(self, max_rows: int, max_pages: int, device: torch.device | None = None) -> None:
        one_each = (torch.int64, (max_rows,))
        self._memory = StateMemory(
            {
                "last_token": one_each,
                "position": one_each,
                "source": (torch.int32, (max_rows,)),
                "decodes": (torch.int32, (max_rows,)),
                "page_table": (torch.int32, (max_rows, max_pages)),
                **SamplingState.columns(max_rows),
            },
            device,
        )
        self.last_token, self.position = self._memory["last_token"], self._memory["position"]
        self.source = self._memory["source"]
        self.decodes, self.page_table = self._memory["decodes"], self._memory["page_table"]
        self.sampling = SamplingState.of(self._memory)
        self._max_pages = max_pages
        self._next_tokens = (row_state if self.position.is_cuda else reference_state).next_tokens
        self._known: list[_Known | None] = [None] * max_rows
        self._places: dict[int, int] = {}  # by row
        self._decoding: set[int] = set()  # places
        self._planned: set[int] = set()  # rows of the step at hand
        self._moved: dict[int, int] = {}  # in the step before: from where, by where to
        self._memory.write("source", 0, range(max_rows))

    @property
    def num_writes(self) -> int:
        """Values written so far because of what the host alone knows."""
        return self._memory.num_writes

    def enter(self, chunks: Rows[Chunk], *, below: int | None = None) -> list[int]:
        """Bring the tensors up to date for a step, which is computed next.

        Positions of rows that do not decode are those behind the step from here on; the others move on in
        ``next_tokens``.

        Args:
            chunks: the step.
            below: rows that decode move to places below, as far as any are free there.

        Returns:
            The rows' places.
        """
        self._leave()
        self._planned = {chunk.sequence.row for chunk in chunks}
        places: list[int] = []
        decoding: set[int] = set()
        for chunk in chunks:
            sequence = chunk.sequence
            place = self._places.get(sequence.row, -1)
            known = self._known[place] if place >= 0 else None
            if known is None or known.row() is not sequence:
                place, known = self._settle_in(sequence, self._free_place() if place < 0 else place)
            if below is not None and place >= below:
                place, known = self._move(chunk, place, known, below)
            places.append(place)
            if chunk.samples and chunk.num_tokens == 1:
                decoding.add(place)
                if known.position != chunk.start or known.num_tokens != chunk.end:
                    self._memory.write("position", place, [chunk.start])
                    self._memory.write("last_token", place, [sequence.token_ids[chunk.start]])
            else:
                self._memory.write("position", place, [chunk.end])
            known.position = chunk.end
            known.num_tokens = chunk.end + 1 if chunk.samples else 0
            pages = sequence.pages
            if known.num_pages != len(pages.page_ids) or known.generation != pages.generation:
                first = known.num_pages if known.generation == pages.generation else 0
                self._memory.write("page_table", place * self._max_pages + first, pages.page_ids[first:])
                known.num_pages, known.generation = len(pages.page_ids), pages.generation
        for place in decoding ^ self._decoding:
            self._memory.write("decodes", place, [int(place in decoding)])
        self._decoding = decoding
        self._memory.send()
        return places

    def next_tokens(self, out: NextTokens) -> None:
        """Tell what the rows that decode compute, and count it as computed; once a step in which any does."""
        self._next_tokens(out, self.position, self.last_token, self.source, self.decodes)

    def places(self) -> Places:
        """Tell which rows have places, those that gave their pages back and may come again among them."""
        rows, end, left = set(), 0, set(self._moved.values())
        for place, known in enumerate(self._known):
            row = None if known is None or place in left else known.row()
            if row is not None and not row.has_ended:
                rows.add(row.row)
                end = place + 1
        return Places(rows, end)

    def place_of(self, sequence: Sequence) -> int:
        """Tell the place of a row that entered last."""
        return self._places[sequence.row]

    def forget(self) -> None:
        """Trust the tensors no more: a step was begun and not ended."""
        self._leave()
        self._known = [None] * len(self._known)
        self._places.clear()
        self._memory.write("decodes", 0, [0] * len(self._known))
        self._decoding = set()

    def _settle_in(self, sequence: Sequence, place: int) -> tuple[int, _Known]:
        """Give a row a place, and write there how it draws."""
        before = self._known[place]
        if before is not None and self._places.get(before.number) == place:
            del self._places[before.number]
        self._places[sequence.row] = place
        known = self._known[place] = _Known(ref(sequence), sequence.row)
        for name, value in self.sampling.values_of(sequence).items():
            self._memory.write(name, place, [value])
        return place, known

    def _move(self, chunk: Chunk, place: int, known: _Known, below: int) -> tuple[int, _Known]:
        """Move a row down, if there is a place, and if all that is kept of it by place can be moved."""
        row = chunk.sequence
        target = self._vacant_place(below)
        is_there = known.position == chunk.start and known.num_tokens == chunk.end
        if target is None or not is_there or Penalties.needed_by(row):
            return place, known
        _, moved = self._settle_in(row, target)
        moved.position, moved.num_tokens = known.position, known.num_tokens
        self._memory.write("position", target, [known.position])
        self._memory.write("source", target, [place])
        self._moved[target] = place
        return target, moved

    def _leave(self) -> None:
        """Give up the places of rows that have moved in the last step: their tokens have been read there."""
        for target, place in self._moved.items():
            self._memory.write("source", target, [target])
            self._known[place] = None
        self._moved.clear()

    def _vacant_place(self, below: int) -> int | None:
        """The first place whose row has gone, or has given its pages back."""
        for place, known in enumerate(self._known[:below]):
            row = None if known is None else known.row()
            if row is None or row.has_ended or not (row.pages.page_ids or row.row in self._planned):
                return place
        return None

    def _free_place(self) -> int:
        """Find the first place; of one whose row takes no part, for such a row can always enter again.

        Low places first: a step computes all places up to its last one.
        """
        place = self._vacant_place(len(self._known))
        if place is None:
            others = (place for place, known in enumerate(self._known) if known and known.number not in self._planned)
            place = next(others)
        return place
