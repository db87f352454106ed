"""Computes a plan: packs its chunks into one ragged batch, runs the model, draws the tokens."""

import logging
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from headrace.kernels.table import Operations, Ragged, Segment
from headrace.memory.kv_cache import KVCache
from headrace.workers.engine.fusion import Chunk, Plan
from headrace.workers.engine.logprobs import Logprobs
from headrace.workers.engine.models.model import Model
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.sampling import Sampler
from headrace.workers.engine.segments import segments_of
from headrace.workers.engine.sequence import Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Draw:
    """What a step brought a row.

    Attributes:
        sequence: the row.
        token_id: the token drawn; meaningless where there is an error.
        error: why the row cannot go on; else "".
        logprobs: the token's, where the row asks for them.
    """

    sequence: Sequence
    token_id: int
    error: str = ""
    logprobs: Logprobs | None = None


class Runner:
    """Model, memory and operations.

    Args:
        model: what to compute.
        kv_cache: where the rows' pages lie.
        operations: the table that the model is written over.
        rows: what the device knows of the rows.
    """

    def __init__(self, model: Model, kv_cache: KVCache, operations: Operations, rows: RowState) -> None:
        self._rows = rows
        self._model = model
        self._kv_cache = kv_cache
        self._operations = operations
        self._sampler = Sampler(rows)

    @torch.inference_mode()
    def run(self, plan: Plan) -> tuple[Draw, ...]:
        """Compute a plan's tokens and draw the next one of each row that is complete.

        If the batch raises, its chunks are computed one by one, so that only a row that raises alone ends: keys and
        values are written where they were written before, and random numbers do not remember the first attempt.

        Returns:
            A row each, for the rows that sampled and the rows that failed.
        """
        for copy in plan.copies:
            self._kv_cache.copy(copy.source, copy.target, copy.num_tokens)
        try:
            return self._compute(plan.chunks)
        except Exception:
            logger.exception("a step of %d rows failed, trying them alone", len(plan.chunks))
        draws: list[Draw] = []
        for chunk in plan.chunks:
            try:
                draws += self._compute((chunk,))
            except Exception as error:
                logger.exception("row %d failed", chunk.sequence.row)
                draws.append(Draw(chunk.sequence, 0, f"{type(error).__name__}: {error}"))
        return tuple(draws)

    def _compute(self, chunks: Rows[Chunk]) -> tuple[Draw, ...]:
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        batch = self._pack(chunks)
        with self._operations.step(len(batch.token_ids), len(sampling)):
            logits = self._model.forward(batch, self._kv_cache)
        self._rows.advance([chunk.sequence for chunk in chunks], [chunk.num_tokens for chunk in chunks])
        if logits is None:
            return ()
        sampled = self._sampler.sample(logits, sampling)
        self._rows.draw(sampling, sampled.token_ids)
        return tuple(
            Draw(sequence, token_id, "" if valid else "no token has a finite logit", sampled.logprobs.get(index))
            for index, (sequence, token_id, valid) in enumerate(
                zip(sampling, sampled.token_ids, sampled.valid, strict=True)
            )
        )

    def _pack(self, chunks: Rows[Chunk]) -> Ragged:
        """Make a batch: decoding rows from the device's own state, prompts from the host."""
        page_size, state = self._kv_cache.page_size, self._rows
        places = state.enter([chunk.sequence for chunk in chunks])
        num_decoding = sum(1 for _ in takewhile(lambda chunk: chunk.sequence.num_tokens_left == 1, chunks))
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled: list[int] = []
        segments: list[Segment] = []
        num_tokens = 0
        for index, chunk in enumerate(chunks):
            start = chunk.sequence.num_computed_tokens
            end = start + chunk.num_tokens
            page_ids = chunk.sequence.pages.page_ids
            segments += segments_of(self._kv_cache, page_ids, start, end, first_query=num_tokens)
            num_tokens += chunk.num_tokens
            if chunk.samples:
                sampled.append(num_tokens - 1)
            if index >= num_decoding:
                token_ids += chunk.sequence.token_ids[start:end]
                positions += range(start, end)
                slots += [page_ids[i // page_size] * page_size + i % page_size for i in range(start, end)]
        decoding = places[:num_decoding]
        position = state.position[decoding]
        pages = state.page_table[decoding, position // page_size]
        return Ragged(
            _join(state.last_token[decoding], token_ids),
            _join(position, positions),
            _join(pages * page_size + position % page_size, slots),
            torch.tensor(sampled, dtype=torch.int64),
            tuple(segments),
        )


def _join(first: Tensor, rest: list[int]) -> Tensor:
    return torch.cat((first, torch.tensor(rest, dtype=first.dtype))) if rest else first
