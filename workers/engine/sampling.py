"""From logits to tokens on a CPU, all rows of a step at once: each row's rules, then its most probable token or a draw.

No result depends on who else is in the batch: rules touch their own row, and a draw is a function of the row's
distribution and of one number (``uniform``) that follows from seed and position.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from headrace.workers.engine.drawing import Drawer, Filters
from headrace.workers.engine.logprobs import RawLogprobs
from headrace.workers.engine.row_rules import RowRules
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.sampled import Sampled
from headrace.workers.engine.sampling_state import SamplingState
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.uniform import sequence_of, uniform


@dataclass(frozen=True, slots=True)
class _Group:
    """What a batch's rows have in common from step to step.

    Attributes:
        rows: the batch.
        ruled: indices of rows with rules, and those.
        greedy: indices of rows that take their most probable token, int64.
        drawing: indices of rows that draw, int64.
        filters: of those that draw.
        numbers: where their random numbers begin, int64 ``[num_drawing]``.
        num_prompt_tokens: of those that draw, int64 ``[num_drawing]``.
    """

    rows: tuple[Sequence, ...]
    ruled: tuple[tuple[int, RowRules], ...]
    greedy: Tensor
    drawing: Tensor
    filters: Filters
    numbers: Tensor
    num_prompt_tokens: Tensor


class Sampler:
    """Samples on the CPU; keeps what rows need from step to step, and a row's part goes when the row does.

    Args:
        state: of the rows: how they draw and at which position; drawn tokens are written there.
    """

    def __init__(self, state: RowState) -> None:
        self._state = state
        self._rules: WeakKeyDictionary[Sequence, RowRules] = WeakKeyDictionary()
        self._group: _Group | None = None
        self._drawer = Drawer()
        self._logprobs = RawLogprobs()

    def sample(self, logits: Tensor, rows: Rows[Sequence]) -> Sampled:
        """Choose one token a row, and write it to where the next step reads it.

        Args:
            logits: fp32 ``[num_rows, vocab]``; overwritten.
            rows: whose logits these are: they have entered the state, all their tokens are computed, and nothing is
                chosen at this position yet.
        """
        places = torch.tensor([self._state.place_of(row) for row in rows], dtype=torch.int64)
        group = self._group_of(tuple(rows), places, logits.shape[1])
        self._logprobs.take(logits, rows)
        for index, rules in group.ruled:
            rules.apply(logits[index], rows[index])
        # The greatest value of a row costs a tenth of its place, which rows that draw do not need.
        best = logits.amax(dim=-1)
        valid = best.isfinite()
        token_ids = torch.zeros(len(rows), dtype=torch.int64)
        if len(group.greedy):
            token_ids[group.greedy] = (logits if len(group.greedy) == len(rows) else logits[group.greedy]).argmax(
                dim=-1
            )
        if len(group.drawing):
            self._draw(logits, best, valid, token_ids, places, group)
        self._state.last_token.index_copy_(0, places, token_ids)
        tokens = token_ids.tolist()
        return Sampled(tokens, valid.tolist(), self._logprobs.of(tokens))

    def _draw(
        self, logits: Tensor, best: Tensor, valid: Tensor, token_ids: Tensor, places: Tensor, group: _Group
    ) -> None:
        index = group.drawing
        shifted = logits if len(index) == len(group.rows) else logits[index]
        shifted.sub_(best[index, None])
        if not valid.all():
            # A row without a valid token has no distribution: it draws from one that does no harm.
            shifted[~valid[index]] = 0.0
        numbers = uniform(group.numbers, self._state.position[places[index]] - group.num_prompt_tokens)
        token_ids[index] = self._drawer.draw(shifted, group.filters, numbers[:, None])

    def _group_of(self, rows: tuple[Sequence, ...], places: Tensor, vocab_size: int) -> _Group:
        """The batch's group: the last step's, unless rows have come or gone."""
        # Sequences compare by identity.
        if self._group is None or self._group.rows != rows:
            self._group = self._make_group(rows, places, vocab_size)
        return self._group

    def _make_group(self, rows: tuple[Sequence, ...], places: Tensor, vocab_size: int) -> _Group:
        ruled: list[tuple[int, RowRules]] = []
        for index, row in enumerate(rows):
            rules = self._rules.get(row) or RowRules.of(row, vocab_size)
            if rules is not None:
                self._rules[row] = rules
                ruled.append((index, rules))
        state = self._state.sampling
        draws = state.temperature[places] > 0
        drawing = draws.nonzero()[:, 0]
        drawing_places = places[drawing]
        return _Group(
            rows,
            tuple(ruled),
            (~draws).nonzero()[:, 0],
            drawing,
            _filters(state, drawing_places, vocab_size),
            sequence_of(state.seed[drawing_places]),
            state.num_prompt_tokens[drawing_places],
        )


def _filters(state: SamplingState, places: Tensor, vocab_size: int) -> Filters:
    top_k = state.top_k[places].long()
    return Filters(
        state.temperature[places, None],
        top_k.where(top_k > 0, vocab_size).clamp_(max=vocab_size)[:, None],
        state.top_p[places, None].double(),
        state.min_p[places, None].double(),
    )
