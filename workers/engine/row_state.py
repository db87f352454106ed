"""What a device must know of the rows in flight, in tensors that stay: last token, position, pages, how they draw.

The tensors are brought up to date by differences: in a step in which rows only decode, the host writes nothing but the
number of a page that a row has just taken. Positions move on and drawn tokens arrive on the device itself, so that
the next step can be made from them before the host has seen them.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from headrace.job import SamplingParams
from headrace.kernels import reference_state, row_state
from headrace.workers.engine.sampling_state import SamplingState
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.state_memory import StateMemory


@dataclass(slots=True)
class _Known:
    """What the tensors say of one row."""

    row: int
    position: int = 0
    last_token: int | None = None
    page_ids: list[int] = field(default_factory=list)
    params: SamplingParams | None = None
    num_prompt_tokens: int = 0


class RowState:
    """Places for rows.

    Args:
        max_rows: rows of one step at most.
        max_pages: pages of one row at most.
        device: of the tensors.

    Attributes:
        last_token: int64 ``[max_rows]``, the token that a decoding row computes next.
        position: int64 ``[max_rows]``, tokens of a row that are computed.
        page_table: int32 ``[max_rows, max_pages]``, a row's pages in order; what is behind the last one means nothing.
        sampling: how the rows draw.
    """

    def __init__(self, max_rows: int, max_pages: int, device: torch.device | None = None) -> None:
        one_each = (torch.int64, (max_rows,))
        self._memory = StateMemory(
            {
                "last_token": one_each,
                "position": one_each,
                "page_table": (torch.int32, (max_rows, max_pages)),
                **SamplingState.columns(max_rows),
            },
            device,
        )
        self._lists = StateMemory({"entered": one_each, "sampled": one_each}, device)
        self.last_token, self.position = self._memory["last_token"], self._memory["position"]
        self.page_table = self._memory["page_table"]
        self.sampling = SamplingState.of(self._memory)
        self._max_pages = max_pages
        self._count_on = (row_state if self.position.is_cuda else reference_state).advance
        self._known: list[_Known | None] = [None] * max_rows
        self._places: dict[int, int] = {}  # by row
        self._listed: dict[str, list[int]] = {"entered": [], "sampled": []}

    @property
    def num_writes(self) -> int:
        """Values written so far because of what the host alone knows."""
        return self._memory.num_writes

    def enter(self, sequences: Rows[Sequence]) -> Tensor:
        """Bring the tensors up to date for the rows of a step.

        Returns:
            Their places, int64 ``[num_rows]``, until other rows enter.
        """
        planned = {sequence.row for sequence in sequences}
        places = []
        for sequence in sequences:
            place = self._places.get(sequence.row)
            if place is None:
                place = self._free_place(planned)
                self._places[sequence.row] = place
                self._known[place] = _Known(sequence.row)
                self._memory.write("position", place, [0])
            self._update(place, sequence)
            places.append(place)
        self._memory.send()
        return self._list("entered", places)

    def advance(self, sequences: Rows[Sequence], num_tokens: Rows[int]) -> None:
        """Note how many tokens of each row a step has computed, for the rows that entered last.

        Rows with one token come first: they move on where they are, and the host writes nothing.
        """
        for sequence, num in zip(sequences, num_tokens, strict=True):
            self._of(sequence).position += num
        num_single = sum(1 for _ in takewhile(lambda num: num == 1, num_tokens))
        self._count_on(self.position, self._lists["entered"][:num_single])
        for sequence in sequences[num_single:]:
            self._memory.write("position", self._places[sequence.row], [self._of(sequence).position])
        self._memory.send()

    def index_of(self, sequences: Rows[Sequence]) -> list[int]:
        """Tell the places of some of the rows that entered last."""
        return [self._places[sequence.row] for sequence in sequences]

    def places_of(self, sequences: Rows[Sequence]) -> Tensor:
        """Tell the places of some of the rows that entered last, int64 ``[num_rows]``, until it is asked again."""
        places = self.index_of(sequences)
        return self._list("entered" if places == self._listed["entered"] else "sampled", places)

    def draw(self, sequences: Rows[Sequence], token_ids: Rows[int]) -> None:
        """Note the tokens that a step has drawn, and that the sampler has written into ``last_token``."""
        for sequence, token_id in zip(sequences, token_ids, strict=True):
            self._of(sequence).last_token = token_id

    def _list(self, name: str, places: list[int]) -> Tensor:
        if places != self._listed[name]:
            self._listed[name] = places
            self._lists.write(name, 0, places)
            self._lists.send()
        return self._lists[name][: len(places)]

    def _of(self, sequence: Sequence) -> _Known:
        known = self._known[self._places[sequence.row]]
        if known is None:
            raise ValueError(f"row {sequence.row} has not entered")
        return known

    def _update(self, place: int, sequence: Sequence) -> None:
        known, write = self._of(sequence), self._memory.write
        if known.position != sequence.num_computed_tokens:
            known.position = sequence.num_computed_tokens
            write("position", place, [known.position])
        if sequence.num_tokens_left == 1 and known.last_token != sequence.token_ids[-1]:
            known.last_token = sequence.token_ids[-1]
            write("last_token", place, [known.last_token])
        if known.params is not sequence.params or known.num_prompt_tokens != sequence.num_prompt_tokens:
            known.params, known.num_prompt_tokens = sequence.params, sequence.num_prompt_tokens
            for name, value in self.sampling.values_of(sequence).items():
                write(name, place, [value])
        page_ids, num_known = sequence.pages.page_ids, len(known.page_ids)
        if known.page_ids != page_ids[:num_known]:
            known.page_ids, num_known = [], 0
        if num_known < len(page_ids):
            new = page_ids[num_known:]
            write("page_table", place * self._max_pages + num_known, new)
            known.page_ids += new

    def _free_place(self, planned: set[int]) -> int:
        """Find a place; that of a row which takes no part will do, for rows can always enter again."""
        for place, known in enumerate(self._known):
            if known is None:
                return place
        place, known = next((p, k) for p, k in enumerate(self._known) if k is not None and k.row not in planned)
        del self._places[known.row]
        return place
