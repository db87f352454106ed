"""Steps on a CPU: packs chunks into one ragged batch, runs the model, draws the tokens."""

import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from headrace.kernels.ragged import Contexts, Ragged, Segment
from headrace.kernels.row_state import NextTokens
from headrace.kernels.table import Table
from headrace.memory.kv_cache import KVCache
from headrace.memory.pages import PageCopy
from headrace.workers.engine.forbidden import Forbidden
from headrace.workers.engine.launches import Launches
from headrace.workers.engine.models.model import Model
from headrace.workers.engine.penalties import Penalties
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.runner import Draw, Drawn
from headrace.workers.engine.sampling import Sampler
from headrace.workers.engine.segments import segments_of
from headrace.workers.engine.sequence import Sequence

#: Rows that decode are attended to together as long as they see no more tokens than this. Beyond it, one by one is as
#: fast or faster: a call costs little beside its work, and a group of heads finds its keys in the cache again.
MAX_TOGETHER_TOKENS = 1024
_SHORT, _LONG, _PREFILL = range(3)


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step that was done when it was started."""

    drawn: Drawn

    def finish(self) -> Drawn:
        """See ``StartedStep``."""
        return self.drawn


class HostSteps:
    """Model, memory and operations.

    Args:
        model: what to compute.
        kv_cache: where the rows' pages lie.
        operations: the table that the model is written over.
        rows: what is known of the rows from step to step.

    Attributes:
        launches: none.
    """

    def __init__(self, model: Model, kv_cache: KVCache, operations: Table[Ragged], rows: RowState) -> None:
        self._rows = rows
        self._model = model
        self._kv_cache = kv_cache
        self._operations = operations
        self._sampler = Sampler(rows)
        self._next = NextTokens.empty(len(rows.position))
        self.launches = Launches()

    @property
    def num_ahead(self) -> int:
        """None: nothing is gained, and every token would come a step later."""
        return 0

    def reads_tokens(self, sequence: Sequence) -> bool:
        """Whether a row has rules that follow from its tokens."""
        return Forbidden.reads_tokens(sequence) or Penalties.needed_by(sequence)

    def places(self) -> None:
        """None: only what is planned is computed."""
        return

    def copy(self, copies: Rows[PageCopy]) -> None:
        """Copy pages; see ``Steps``."""
        self._kv_cache.begin(copies)

    def start(self, chunks: Rows[Chunk]) -> "FinishedStep":
        """Compute chunks together; see ``Steps``."""
        begin_s = time.perf_counter()
        try:
            draws = self._compute(chunks)
        except Exception:
            self._rows.forget()
            raise
        return FinishedStep(Drawn(draws, (time.perf_counter() - begin_s) * 1000))

    def _compute(self, chunks: Rows[Chunk]) -> tuple[Draw, ...]:
        chunks = sorted(chunks, key=self._turn)
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        batch = self.pack(chunks)
        with self._operations.step(batch):
            logits = self._model.forward(batch)
        if logits is None:
            return ()
        sampled = self._sampler.sample(logits.float(), sampling)
        return tuple(
            Draw(sequence, token_id, "" if valid else "no token has a finite logit", sampled.logprobs.get(index))
            for index, (sequence, token_id, valid) in enumerate(
                zip(sampling, sampled.token_ids, sampled.valid, strict=True)
            )
        )

    def pack(self, chunks: Rows[Chunk]) -> Ragged:
        """Make a batch: decoding rows from the device's own state, prompts from the host.

        Args:
            chunks: short rows that decode first, then long ones, then the others.
        """
        page_size, state = self._kv_cache.page_size, self._rows
        places = torch.tensor(state.enter(chunks), dtype=torch.int64)
        state.next_tokens(self._next)
        num_decoding = sum(1 for _ in takewhile(lambda chunk: self._turn(chunk) < _PREFILL, chunks))
        num_short = sum(1 for _ in takewhile(lambda chunk: self._turn(chunk) == _SHORT, chunks))
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled: list[int] = []
        segments: list[Segment] = []
        num_tokens = 0
        for index, chunk in enumerate(chunks):
            start, end = chunk.start, chunk.end
            page_ids = chunk.sequence.pages.page_ids
            if index >= num_short:
                segments += segments_of(self._kv_cache, page_ids, start, end, first_query=num_tokens)
            num_tokens += chunk.num_tokens
            if chunk.samples:
                sampled.append(num_tokens - 1)
            if index >= num_decoding:
                token_ids += chunk.sequence.token_ids[start:end]
                positions += range(start, end)
                slots += [page_ids[i // page_size] * page_size + i % page_size for i in range(start, end)]
        decoding = places[:num_decoding]
        position = self._next.positions[decoding].long()
        pages = state.page_table[decoding, position // page_size]
        contexts = None
        if num_short:
            lengths = tuple(chunk.end for chunk in chunks[:num_short])
            contexts = Contexts(lengths, places[:num_short], state.page_table, page_size, self._kv_cache.places)
        return Ragged(
            _join(self._next.token_ids[decoding], token_ids),
            _join(position, positions),
            torch.tensor(sampled, dtype=torch.int64),
            self._kv_cache.places(_join(pages * page_size + position % page_size, slots)),
            tuple(segments),
            self._kv_cache.layers,
            contexts,
        )

    def _turn(self, chunk: Chunk) -> int:
        """When a chunk's turn is among those of a step."""
        if not chunk.decodes:
            return _PREFILL
        together = self._model.dtype == torch.float32 and chunk.start < MAX_TOGETHER_TOKENS
        return _SHORT if together else _LONG


def _join(first: Tensor, rest: list[int]) -> Tensor:
    return torch.cat((first, torch.tensor(rest, dtype=first.dtype))) if rest else first
