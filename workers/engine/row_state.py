"""What a device must know of the rows in flight, in tensors that stay: last token, position, pages, how they draw.

The tensors are brought up to date by differences: in a step in which rows only decode, the host writes nothing but the
number of a page that a row has just taken. Positions move on and drawn tokens arrive on the device itself, so that
the next step can be made from them before the host has seen them.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.job import SamplingParams
from headrace.workers.engine.sampling_state import SamplingState
from headrace.workers.engine.sequence import Sequence


@dataclass(slots=True)
class _Known:
    """What the tensors say of one row."""

    row: int
    position: int
    last_token: int
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
        num_writes: values written by the host so far.
    """

    def __init__(self, max_rows: int, max_pages: int, device: torch.device | None = None) -> None:
        self.last_token = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.position = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.page_table = torch.zeros(max_rows, max_pages, dtype=torch.int32, device=device)
        self.sampling = SamplingState(max_rows, device)
        self.num_writes = 0
        self._known: list[_Known | None] = [None] * max_rows
        self._places: dict[int, int] = {}  # by row
        self._indices: tuple[list[int], Tensor] = ([], self.position[:0])
        self._subset: tuple[list[int], Tensor] = self._indices

    def enter(self, sequences: Rows[Sequence]) -> Tensor:
        """Bring the tensors up to date for the rows of a step.

        Returns:
            Their places, int64 ``[num_rows]``.
        """
        planned = {sequence.row for sequence in sequences}
        places = []
        for sequence in sequences:
            place = self._places.get(sequence.row)
            if place is None:
                place = self._free_place(planned)
                self._places[sequence.row] = place
                self._known[place] = _Known(sequence.row, 0, 0)
                self.position[place] = 0
            self._update(place, sequence)
            places.append(place)
        if places != self._indices[0]:
            self._indices = places, torch.tensor(places, dtype=torch.int64, device=self.position.device)
        return self._indices[1]

    def advance(self, sequences: Rows[Sequence], num_tokens: Rows[int]) -> None:
        """Note how many tokens of each row a step has computed, for the rows that entered last."""
        places = self._indices[1]
        self.position.index_add_(0, places, torch.tensor(num_tokens, device=places.device))
        for sequence, num in zip(sequences, num_tokens, strict=True):
            self._of(sequence).position += num

    def places_of(self, sequences: Rows[Sequence]) -> Tensor:
        """Tell the places of some of the rows that entered last, int64 ``[num_rows]``."""
        places = [self._places[sequence.row] for sequence in sequences]
        if places == self._indices[0]:
            return self._indices[1]
        if places != self._subset[0]:
            self._subset = places, torch.tensor(places, dtype=torch.int64, device=self.position.device)
        return self._subset[1]

    def draw(self, sequences: Rows[Sequence], token_ids: Rows[int]) -> None:
        """Note the tokens that a step has drawn, and that the sampler has written into ``last_token``."""
        for sequence, token_id in zip(sequences, token_ids, strict=True):
            self._of(sequence).last_token = token_id

    def _of(self, sequence: Sequence) -> _Known:
        known = self._known[self._places[sequence.row]]
        if known is None:
            raise ValueError(f"row {sequence.row} has not entered")
        return known

    def _update(self, place: int, sequence: Sequence) -> None:
        known = self._of(sequence)
        if known.position != sequence.num_computed_tokens:
            known.position = sequence.num_computed_tokens
            self._write(self.position, place, known.position)
        if sequence.num_tokens_left == 1 and known.last_token != sequence.token_ids[-1]:
            known.last_token = sequence.token_ids[-1]
            self._write(self.last_token, place, known.last_token)
        if known.params is not sequence.params or known.num_prompt_tokens != sequence.num_prompt_tokens:
            known.params, known.num_prompt_tokens = sequence.params, sequence.num_prompt_tokens
            for tensor, value in self.sampling.values_of(sequence):
                self._write(tensor, place, value)
        page_ids, num_known = sequence.pages.page_ids, len(known.page_ids)
        if known.page_ids != page_ids[:num_known]:
            known.page_ids, num_known = [], 0
        if num_known < len(page_ids):
            new = page_ids[num_known:]
            self.page_table[place, num_known : len(page_ids)] = torch.tensor(new, dtype=torch.int32)
            self.num_writes += len(new)
            known.page_ids += new

    def _write(self, tensor: Tensor, place: int, value: int | float) -> None:
        tensor[place] = value
        self.num_writes += 1

    def _free_place(self, planned: set[int]) -> int:
        """Find a place; that of a row which takes no part will do, for rows can always enter again."""
        for place, known in enumerate(self._known):
            if known is None:
                return place
        place, known = next((p, k) for p, k in enumerate(self._known) if k is not None and k.row not in planned)
        del self._places[known.row]
        return place
