"""Steps of a GPU on a CPU: everything of ``DeviceSteps`` but its kernels, which their references stand in for.

Memory, places, rules, packing, and what belongs to a graph are the real ones. A graph replays what was launched when it
was captured, with the arguments of that time.
"""

from collections.abc import Callable, Hashable, Iterator
from collections.abc import Sequence as Rows
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from headrace.kernels import reference_sampling
from headrace.kernels.logit_edits import Edits
from headrace.kernels.logprobs import LogprobResults
from headrace.kernels.penalties import Penalties
from headrace.kernels.planned import PlannedOperations
from headrace.kernels.reference import ReferenceOperations
from headrace.kernels.sampling import Draws, SamplingParameters
from headrace.kernels.table import HeadNorm
from headrace.memory.budget import hold
from headrace.memory.pool import Pool
from headrace.workers.engine import device_results, device_rules, device_sampling, device_steps, padded_size
from headrace.workers.engine.assembly import kv_shape, needs
from headrace.workers.engine.device_sampling import DeviceSampler
from headrace.workers.engine.device_steps import NUM_AHEAD, DeviceSteps
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.loading import LoadedModel
from headrace.workers.engine.padded_size import PaddedSize
from headrace.workers.engine.room import Room
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.runner import Runner


class PagedReference(ReferenceOperations):
    """The operations on a GPU's batches, token by token."""

    @contextmanager
    def step(self, batch: Any) -> Iterator[None]:
        self._batch = self._paged = batch
        yield

    def rotary_kv(
        self,
        qkv: Tensor,
        layer: int,
        num_heads: int,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        norm: HeadNorm | None = None,
    ) -> Tensor:
        batch, pages = self._paged, self._paged.pages[layer]
        num_kv_heads, page_size, head_dim = pages.keys.shape[1:]
        heads = qkv.view(-1, num_heads + 2 * num_kv_heads, head_dim)
        if rotary is not None:
            self._rotate(heads[:, :-num_kv_heads], rotary)
        for token, (at, row) in enumerate(zip(batch.positions.tolist(), batch.rows.tolist(), strict=True)):
            if at >= 0:
                page = pages.page_table[row, at // page_size]
                pages.keys[page, :, at % page_size] = heads[token, num_heads:-num_kv_heads]
                pages.values[page, :, at % page_size] = heads[token, -num_kv_heads:]
        return heads[:, :num_heads]

    def attention(self, query: Tensor, layer: int, *, window: int | None = None, out: Tensor | None = None) -> Tensor:
        batch, pages = self._paged, self._paged.pages[layer]
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads, page_size, _ = pages.keys.shape[1:]
        out = query.new_empty(num_tokens, num_heads * head_dim) if out is None else out
        positions, rows = batch.positions.tolist(), batch.rows.tolist()
        self._check_lengths(positions, rows)
        for token, (at, row) in enumerate(zip(positions, rows, strict=True)):
            numbers = pages.page_table[row, : at // page_size + 1].long()
            keys, values = (
                side[numbers].transpose(0, 1).reshape(num_kv_heads, -1, head_dim)[:, : at + 1]
                for side in (pages.keys, pages.values)
            )
            grouped = query[token].view(num_kv_heads, -1, head_dim)
            out[token] = 0 if at < 0 else functional.scaled_dot_product_attention(grouped, keys, values).flatten()
        return out

    def _check_lengths(self, positions: list[int], rows: list[int]) -> None:
        """What the kernels of attention go by says the same as positions and rows."""
        batch, num_first = self._paged, 0
        if batch.lengths is not None:
            num_first = len(batch.lengths)
            assert batch.lengths.tolist() == [at + 1 for at in positions[:num_first]]
            assert rows[:num_first] == list(range(num_first))
        if batch.queries is not None:
            starts, lengths = batch.queries.starts.tolist(), batch.queries.lengths.tolist()
            for place, end in enumerate(lengths):
                tokens = range(num_first + starts[place], num_first + starts[place + 1])
                assert [positions[token] for token in tokens] == list(range(end - len(tokens), end))
                assert {rows[token] for token in tokens} <= {place}
            # Of chunks, last tokens alone; the first one where nobody's logits fill a place.
            ends = {num_first + end - 1 for end in starts}
            assert all(token < num_first or token in {0, *ends} for token in batch.sampled.tolist())


class Graphs:
    """What was launched first for a key is what is launched from then on."""

    def __init__(self, stream: object, keep: Callable[[tuple[int, int]], None]) -> None:
        self._keep = keep
        self.captured: dict[tuple[int, Hashable], Callable[[], None]] = {}
        self.num_replays = 0

    def run(self, key: tuple[int, Hashable], launch: Callable[[], None]) -> None:
        self.num_replays += key in self.captured
        self._keep((key[0], key[0]))
        self.captured.setdefault(key, launch)()


class PromptGraphs:
    """The same of steps with prompts, each of which is padded."""

    def __init__(self, stream: object, lay_out: Callable[[tuple[int, int]], Rows[Tensor]], max_graphs: int) -> None:
        self._lay_out = lay_out
        self.captured: dict[Hashable, tuple[Rows[Tensor], Callable[[], Tensor | None]]] = {}
        self.num_replays = 0

    def serves(self, size: PaddedSize) -> bool:
        return True

    def observe(self, size: PaddedSize, launch_ms: float, step_ms: float) -> None: ...

    def run(self, key: tuple[PaddedSize, Hashable], launch: Callable[[], Tensor | None]) -> Tensor | None:
        results = self._lay_out(key[0].lengths)
        if key not in self.captured or self.captured[key][0] is not results:
            self.captured[key] = results, launch
        else:
            self.num_replays += 1
        return self.captured[key][1]()


class Event:
    """One that has always happened."""

    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, later: "Event") -> float:
        return 1.0


class Stream:
    """One on which nothing is left to do."""

    device = torch.device("cpu")

    def synchronize(self) -> None: ...


class Kernels:
    """The references of what draws, with the kernels' arguments."""

    def __init__(self) -> None:
        self._raw = torch.empty(0)  # logarithms before anything is changed

    def sample(
        self,
        logits: Tensor,
        parameters: SamplingParameters,
        *,
        places: Tensor,
        penalties: Penalties | None,
        out: Draws,
        workspace: Tensor,
        all_greedy: bool,
        searches: bool,
    ) -> None:
        rows = (places >= 0).nonzero()[:, 0]
        at = places[rows]
        of = SamplingParameters(*(getattr(parameters, name)[at] for name in SamplingParameters.__slots__))
        own = None
        if penalties is not None:
            columns = (getattr(penalties, name)[at] for name in ("repetition", "presence", "frequency"))
            repetition, presence, frequency = columns
            own = Penalties(repetition, presence, frequency, penalties.counts, penalties.slots[at])
        drawn = reference_sampling.sample(logits[rows], of, penalties=own)
        assert not all_greedy or not of.temperature.any()
        assert searches or not ((of.temperature > 0) & (of.top_k == 0) & ((of.top_p < 1) | (of.min_p > 0))).any()
        out.token_ids[rows], out.valid[rows] = drawn.token_ids, drawn.valid
        assert out.last_token is not None
        out.last_token[at] = drawn.token_ids
        if own is not None:
            for slot, token_id in zip(own.slots.tolist(), drawn.token_ids.tolist(), strict=True):
                if slot >= 0:
                    own.counts[slot, token_id] += 1

    def rank(self, logits: Tensor, places: Tensor, num_top: Tensor, out: LogprobResults, workspace: Tensor) -> None:
        self._raw = logits.double().log_softmax(-1)
        for row, place in enumerate(places.tolist()):
            count = int(num_top[place]) if place >= 0 else -1
            if count > 0:
                ids, logprobs = reference_sampling.top_logprobs(logits[row : row + 1], count)
                out.top_ids[row, :count], out.top_logprobs[row, :count] = ids[0].int(), logprobs[0].float()

    def tell(
        self,
        logits: Tensor,
        places: Tensor,
        num_top: Tensor,
        token_ids: Tensor,
        edits: Edits,
        out: LogprobResults,
    ) -> None:
        out.chosen.copy_(self._raw.gather(1, token_ids[:, None])[:, 0])


def tell_host(told: Tensor, turn: Tensor, token_ids: Tensor, valid: Tensor) -> None:
    told[int(turn)][: len(token_ids)] = token_ids.where(valid, -1)
    turn.copy_((turn + 1) % len(told))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put references in the places of kernels, and nothing in that of a GPU."""
    kernels = Kernels()
    for name in ("sample", "rank", "tell"):
        monkeypatch.setattr(device_sampling, name, getattr(kernels, name))
    monkeypatch.setattr(device_sampling, "edit_logits", reference_sampling.edit_logits)
    monkeypatch.setattr(device_rules, "count_tokens", reference_sampling.count_tokens)
    monkeypatch.setattr(device_results, "tell_host", tell_host)
    monkeypatch.setattr(device_steps, "DecodeGraphs", Graphs)
    monkeypatch.setattr(device_steps, "PromptGraphs", PromptGraphs)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: Event())
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)


def device_engine(
    loaded: LoadedModel,
    operations: PlannedOperations[Any],
    *,
    max_rows: int,
    kv_tokens: int,
    step_tokens: int,
    page_size: int,
    chunk_bytes: int,
) -> Engine:
    """Make an engine as ``DeviceEngine`` puts it together."""
    model, most_tokens = loaded.model, max_rows + step_tokens + padded_size.TOKEN_STEP
    shape = kv_shape(model, page_size)
    budget = hold(shape, needs(model, kv_tokens, most_tokens, max_rows), kv_tokens, chunk_bytes)
    pool = Pool(torch.empty(budget.num_bytes, dtype=torch.uint8), budget, shape, model.dtype, order="heads")
    rows = RowState(max_rows, shape.pages_for(kv_tokens))
    sampler = DeviceSampler(rows, model.config.vocab_size, kv_tokens, num_steps=NUM_AHEAD + 1)
    stream: Any = Stream()
    steps = DeviceSteps(
        model,
        pool.kv_cache,
        operations,
        rows,
        sampler,
        stream=stream,
        max_tokens=most_tokens,
        keep=lambda lengths: pool.workspace.keep(lengths, lambda: operations.results(*lengths)),
        prompt_graphs=8,
    )
    return Engine(
        loaded,
        Runner(steps),
        pool.pages,
        max_rows=max_rows,
        step_tokens=step_tokens,
        kv_tokens=kv_tokens,
        row_tokens=kv_tokens,
        room=Room(pool, operations, max_rows, num_padding=padded_size.TOKEN_STEP),
    )
