"""One step's sampling by itself: rows that stand where a model would have left them."""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from headrace.kernels.row_state import NextTokens
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.sampled import Sampled
from headrace.workers.engine.sampling import Sampler
from headrace.workers.engine.sequence import Sequence


def computed(rows: Rows[Sequence], device: torch.device | None = None) -> RowState:
    """Give each row a place (and a number of its own), and count all its tokens as computed."""
    state = RowState(len(rows), 1, device)
    for number, row in enumerate(rows):
        row.row = number
    compute(state, rows)
    return state


def compute(state: RowState, rows: Rows[Sequence]) -> None:
    """Bring a state to where a step of all uncomputed tokens of each row leaves it."""
    state.enter([Chunk.next_of(row, row.num_tokens_left) for row in rows])
    state.next_tokens(NextTokens.empty(len(state.position), state.position.device))


def sample(logits: Tensor, rows: Rows[Sequence]) -> Sampled:
    """Choose a token a row; ``logits`` are overwritten."""
    return Sampler(computed(rows)).sample(logits, rows)
