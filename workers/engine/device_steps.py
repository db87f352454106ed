"""Steps on a GPU: rows have places that stay, and what only the device knows of them the host does not wait for."""

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headrace.errors import DeviceLostError
from headrace.kernels.paged_batch import PagedBatch
from headrace.kernels.planned import PlannedOperations
from headrace.memory.kv_cache import KVCache
from headrace.memory.pages import PageCopy
from headrace.workers.engine.decode_graphs import DecodeGraphs, padded_places
from headrace.workers.engine.device_results import Sent
from headrace.workers.engine.device_sampling import DeviceSampler, Group, Kind
from headrace.workers.engine.forbidden import Forbidden
from headrace.workers.engine.launches import Launches
from headrace.workers.engine.models.model import Model
from headrace.workers.engine.padded_size import PaddedSize
from headrace.workers.engine.places import Places
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.prompt_graphs import PromptGraphs
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.runner import Draw, Drawn
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.step_packing import Packed, Packer

#: Steps that are started before an earlier one is finished: the GPU has its next work before it ends the one at hand.
NUM_AHEAD = 1


class DeviceSteps:
    """Model, memory and operations. All work is launched on one stream, and runs in that order.

    Args:
        model: what to compute.
        kv_cache: where the rows' pages lie, in the order "heads".
        operations: the table that the model is written over.
        rows: what the device knows of the rows.
        sampler: draws; it holds the results of ``NUM_AHEAD + 1`` steps.
        stream: what everything is launched on.
        max_tokens: tokens of a step at most.
        keep: lays a step's results out for good, by numbers of tokens and of sampled ones, as graphs want it; None:
            nothing is captured.
        prompt_graphs: graphs of steps with prompts that are kept; 0: these are not captured.
        launching: entered while steps with prompts are launched kernel by kernel; see ``Device.launching_early``.

    Attributes:
        rows: as given.
        stream: as given.
    """

    def __init__(
        self,
        model: Model,
        kv_cache: KVCache,
        operations: PlannedOperations[PagedBatch],
        rows: RowState,
        sampler: DeviceSampler,
        *,
        stream: torch.cuda.Stream,
        max_tokens: int,
        keep: Callable[[tuple[int, int]], None] | None = None,
        prompt_graphs: int = 0,
        launching: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.rows = rows
        self.stream = stream
        self._model = model
        self._kv_cache = kv_cache
        self._operations = operations
        self._sampler = sampler
        self._packer = Packer(rows, kv_cache, model.config.num_layers, max_tokens, NUM_AHEAD + 1)
        self._graphs = None if keep is None else DecodeGraphs(stream, keep)
        self._logits: dict[tuple[int, Kind | None], Tensor] = {}
        self._max_tokens = max_tokens
        self._num_steps = 0
        self._launching = launching
        self._prompt_graphs: PromptGraphs | None = None
        if keep is not None and prompt_graphs:
            self._prompt_graphs = PromptGraphs(stream, operations.lay_out, prompt_graphs)

    @property
    def num_ahead(self) -> int:
        """Steps that may be started before an earlier one is finished."""
        return NUM_AHEAD

    @property
    def launches(self) -> Launches:
        """How the steps so far were launched."""
        kept = [graphs for graphs in (self._graphs, self._prompt_graphs) if graphs is not None]
        num_replayed, num_captured = sum(g.num_replays for g in kept), sum(g.num_captures for g in kept)
        return Launches(num_replayed, num_captured, self._num_steps - num_replayed - num_captured)

    def reads_tokens(self, sequence: Sequence) -> bool:
        """Whether what a row may not draw follows from its tokens, which the host looks up; the GPU knows the rest."""
        return Forbidden.reads_tokens(sequence)

    def places(self) -> Places:
        """Which rows have places; see ``Steps``."""
        return self.rows.places()

    def copy(self, copies: Rows[PageCopy]) -> None:
        """Copy pages; see ``Steps``."""
        with torch.cuda.stream(self.stream):
            self._kv_cache.begin(copies)

    def start(self, chunks: Rows[Chunk]) -> "StartedDeviceStep":
        """Launch a step; see ``Steps``.

        Raises:
            DeviceLostError: the GPU cannot go on, in this step or any other.
        """
        with self.watched():
            try:
                with torch.cuda.stream(self.stream):
                    return self._start(chunks)
            except Exception:
                self.stream.synchronize()
                with torch.cuda.stream(self.stream):
                    self.rows.forget()
                    self._sampler.forget()
                raise

    def apart(self) -> "DeviceSteps":
        """Make others over the same model and memory that leave these rows alone; they may ``compute``, not draw."""
        max_rows, max_pages = self.rows.page_table.shape
        return DeviceSteps(
            self._model,
            self._kv_cache,
            self._operations,
            RowState(max_rows, max_pages, self.rows.page_table.device),
            self._sampler,
            stream=self.stream,
            max_tokens=self._max_tokens,
        )

    def compute(self, chunks: Rows[Chunk]) -> tuple[Tensor | None, Packed]:
        """Launch what a step's model computes, and draw nothing.

        Returns:
            Logits, ``[num_sampled, vocab]``, until the next step; None where no row samples. And what they are of.
        """
        places = self.rows.enter(chunks)
        decodes = chunks[-1].decodes
        packed = self._packer.decoding(1 + max(places)) if decodes else self._packer.mixed(chunks, places)
        return self._forward(packed), packed

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Find out, if anything is raised, whether the GPU still works."""
        try:
            yield
        except Exception as error:
            try:
                torch.cuda.synchronize(self.stream.device)
            except RuntimeError as lost:
                raise DeviceLostError(f"the GPU is lost: {lost}") from error
            raise

    def _start(self, chunks: Rows[Chunk]) -> "StartedDeviceStep":
        self._num_steps += 1
        self._sampler.results.begin()
        if chunks[-1].decodes:  # hence all do
            return self._decode(chunks)
        return self._mixed(chunks)

    def _mixed(self, chunks: Rows[Chunk]) -> "StartedDeviceStep":
        """Launch a step with tokens of prompts, padded if that saves the host time."""
        began_s, sampler, graphs = time.perf_counter(), self._sampler, self._prompt_graphs
        places = self.rows.enter(chunks)
        size = PaddedSize.of(chunks, places, len(self.rows.position))
        fits = size.lengths[0] <= self._max_tokens and self._operations.knows(size.lengths[1])
        padded = graphs is not None and fits and graphs.serves(size)
        packed = self._packer.mixed(chunks, places, size if padded else None)
        group = None
        if packed.sampling:
            group = sampler.prepare(packed.sampling, [self.rows.place_of(sequence) for sequence in packed.sampling])
        # Rules differ in more ways than graphs should be captured for: their rows draw behind the graph.
        ruled = group is not None and group.kind.is_ruled
        kind = None if group is None or ruled else group.kind
        launch = partial(self._launch_mixed, packed, kind)
        if graphs is not None and padded:
            logits = graphs.run((size, kind), launch)
        else:
            with self._launching():
                logits = launch()
        if group is not None and ruled and logits is not None:
            sampler.draw(logits, packed.places, group.kind)
        sent = sampler.results.send(
            with_tokens=group is not None, with_logprobs=group is not None and group.kind.asking
        )
        learn = None
        if graphs is not None and fits and not padded:
            learn = partial(graphs.observe, size, (time.perf_counter() - began_s) * 1000)
        return StartedDeviceStep(self, sent, group, packed.indices, learn)

    def _launch_mixed(self, packed: Packed, kind: Kind | None) -> Tensor | None:
        logits = self._forward(packed)
        if logits is not None and kind is not None:
            self._sampler.draw(logits, packed.places, kind)
        return logits

    def _decode(self, chunks: Rows[Chunk]) -> "StartedDeviceStep":
        """Launch a step in which every place up to the last one that decodes computes a token, somebody's or not."""
        sampler, max_places = self._sampler, len(self.rows.position)
        places = self.rows.enter(chunks, below=padded_places(len(chunks), max_places))
        group = sampler.prepare([chunk.sequence for chunk in chunks], places)
        num_places = padded_places(1 + max(places), max_places)
        # Rules differ in more ways than graphs should be captured for: their rows draw behind the graph.
        key = num_places, None if group.kind.is_ruled else group.kind
        launch = partial(self._launch, *key)
        if self._graphs is None:
            launch()
        else:
            self._graphs.run(key, launch)
        if group.kind.is_ruled:
            sampler.draw(self._logits[key], self._packer.decoding(num_places).places, group.kind)
        return StartedDeviceStep(self, sampler.results.send(with_logprobs=group.kind.asking), group, group.places)

    def _launch(self, num_places: int, kind: Kind | None) -> None:
        packed = self._packer.decoding(num_places)
        logits = self._forward(packed)
        if logits is None:
            raise ValueError("a step in which every row decodes has logits")
        self._logits[num_places, kind] = logits
        if kind is not None:
            self._sampler.draw(logits, packed.places, kind)

    def _forward(self, packed: Packed) -> Tensor | None:
        if packed.next_tokens is not None:
            self.rows.next_tokens(packed.next_tokens)
        with self._operations.step(packed.batch):
            return self._model.forward(packed.batch)


@dataclass(frozen=True, slots=True)
class StartedDeviceStep:
    """A step at work on the GPU.

    Attributes:
        steps: whose it is.
        sent: its results.
        group: the rows that draw; None if none does.
        indices: where the results of each are.
        learn: is told what the step took the device, once that is known.
    """

    steps: DeviceSteps
    sent: Sent
    group: Group | None
    indices: tuple[int, ...]
    learn: Callable[[float], None] | None = None

    def finish(self) -> Drawn:
        """Wait for its tokens; see ``StartedStep``."""
        rows, asking = ((), ()) if self.group is None else (self.group.rows, self.group.asking)
        with self.steps.watched():
            sampled = self.sent.take(
                1 + max(self.indices, default=-1), [(self.indices[index], count) for index, count in asking]
            )
            step_ms = self.sent.step_ms
        if self.learn is not None:
            self.learn(step_ms)
        token_ids, valid, logprobs = sampled.token_ids, sampled.valid, sampled.logprobs
        draws = tuple(
            Draw(row, token_ids[at], "" if valid[at] else "no token has a finite logit", logprobs.get(at))
            for row, at in zip(rows, self.indices, strict=True)
        )
        return Drawn(draws, step_ms)
