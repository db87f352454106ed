"""One encoder that computes batches of random texts for real, padded or packed, and says what that took.

Packed batches go through the worker's own engine, in its steps, between which answers leave. A padded batch is one
call. What it takes depends on nothing but its shape, so that shapes which come again and again need not be computed
each time: the first few of a shape are, and from then on their median counts.

On one thread of a CPU, time is what the process has computed: what other programs take of the core does not count. How
much they slow it down by what they do elsewhere (caches, memory, frequency) is taken out by a ``PacedClock``.
"""

import random
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

import torch

from headrace.encoder_job import EncoderJob, EncoderParams, pack_ids
from headrace.errors import MeasurementError
from headrace.testing.paced_clock import PacedClock
from headrace.testing.padded_encoder import PaddedReference
from headrace.testing.state_dict import RandomWeights
from headrace.workers.channel import Encode, EncodeRow
from headrace.workers.costs.table import CostTable
from headrace.workers.encoder.assembly import load_for
from headrace.workers.encoder.device_runner import DeviceRunner
from headrace.workers.encoder.engine import EncoderEngine, Runs
from headrace.workers.encoder.findings import Findings
from headrace.workers.encoder.items import EncoderItem
from headrace.workers.encoder.loading import LoadedEncoder, build_encoder, load_encoder
from headrace.workers.encoder.pooling import Sentences
from headrace.workers.encoder.runner import EncoderRunner
from headrace.workers.encoder.runtimes import DeviceRuntime
from headrace.workers.encoder.scratch import EncoderScratch
from headrace.workers.encoder.tables import table_for
from headrace.workers.engine.measurement import Extent, Measurement
from headrace.workers.worker import ENCODER_ON_CPU, ENCODER_ON_GPU

BERT_BASE: Final[Mapping[str, Any]] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
#: Of one padded shape. On a GPU the first one is launched, the second one captured, and all others replayed.
_PADDED_RUNS: Final = {"cpu": 3, "cuda": 5}
#: What tells the pace: so many rows of so many tokens, again after so long.
_PACE_ROWS, _PACE_TOKENS, _PACE_S = 3, 64, 0.4
#: A padded batch is one step, however large.
_NO_LIMIT: Final = 1 << 40


class EncoderWorker:
    """Times batches; ``on_cpu`` and ``on_gpu`` make one.

    Args:
        packed: computes rows behind each other.
        padded: computes rows of one length, or pads them itself.
        engine: over ``packed``.
        vocab_size: of the texts' tokens.
        step_tokens: of the engine.
        makes_equal: rows must be made equally long for ``padded``.
        padded_runs: of one padded shape; later ones take their median.
        clock_s: by which batches are timed.
    """

    def __init__(
        self,
        packed: Runs,
        padded: Runs,
        engine: EncoderEngine,
        *,
        vocab_size: int,
        step_tokens: int,
        makes_equal: bool,
        padded_runs: int,
        clock_s: Callable[[], float],
    ) -> None:
        self._packed = packed
        self._padded = padded
        self._engine = engine
        self._vocab_size = vocab_size
        self._step_tokens = step_tokens
        self._makes_equal = makes_equal
        self._padded_runs = padded_runs
        self._clock_s = clock_s
        self._padded_ms: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self._job = cache(self._make_job)

    @classmethod
    def on_cpu(cls, folder: Path, num_threads: int) -> Self:
        """A folder's model in fp32. Where rows are padded, masks keep the padding out: answers are right.

        Raises:
            ModelError: the folder cannot be served.
        """
        torch.set_num_threads(num_threads)
        step_tokens = ENCODER_ON_CPU.step_tokens
        loaded = load_for(folder, torch.device("cpu"), "float32")
        packed = EncoderRunner(loaded, batch_tokens=step_tokens)
        padded = EncoderRunner(load_encoder(folder, PaddedReference(), torch.float32), batch_tokens=_NO_LIMIT)
        engine = _engine(loaded, packed, step_tokens)
        vocab_size = loaded.encoder.model.config.vocab_size
        return cls(
            packed, padded, engine, vocab_size=vocab_size, step_tokens=step_tokens, makes_equal=False,
            padded_runs=_PADDED_RUNS["cpu"], clock_s=_clock(packed, vocab_size, num_threads),
        )  # fmt: skip

    @classmethod
    def on_gpu(cls, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype, max_graphs: int) -> Self:
        """Random weights. Where rows are padded, padding is computed as if it were text: masks would come on top.

        Sizes that may be captured are, as in the idle moments of a worker.

        Args:
            config: as config.json has it.
            device: a GPU, or the CPU to try the same without one.
            dtype: of weights and activations.
            max_graphs: captured sizes that are kept.
        """
        table = table_for(device)
        encoder = build_encoder(config, RandomWeights(device), (), table, dtype)
        loaded = LoadedEncoder(encoder, Sentences(), None)
        step_tokens = ENCODER_ON_GPU.step_tokens
        runtime = encoder.model.runtime
        if isinstance(runtime, DeviceRuntime):
            runtime.max_graphs = max_graphs
            packed: EncoderRunner = DeviceRunner(loaded, device, batch_tokens=step_tokens)
            while packed.prepare():
                pass
        else:
            packed = EncoderRunner(loaded, batch_tokens=step_tokens)
        padded = EncoderRunner(loaded, batch_tokens=_NO_LIMIT)
        engine = _engine(loaded, packed, step_tokens)
        return cls(
            packed, padded, engine, vocab_size=encoder.model.config.vocab_size, step_tokens=step_tokens,
            makes_equal=True, padded_runs=_PADDED_RUNS[device.type], clock_s=time.perf_counter,
        )  # fmt: skip

    def run_packed(self, lengths: Sequence[int], cost_ms: float = 0.0) -> list[float]:
        """Compute texts as one batch of the worker's: when each ends, in ms; a ``queue_simulation.Run``.

        Raises:
            MeasurementError: the engine could not compute one.
        """
        ends_ms = [0.0] * len(lengths)
        rows = tuple(EncodeRow(number, self._job(length)) for number, length in enumerate(lengths))
        begin_s = self._clock_s()
        self._engine.add(Encode(rows))
        while self._engine.has_rows:
            answers = self._engine.step().answers
            now_ms = (self._clock_s() - begin_s) * 1000
            for number, _, error in answers:
                if error:
                    raise MeasurementError(error)
                ends_ms[number] = now_ms
        return ends_ms

    def run_padded(self, lengths: Sequence[int], cost_ms: float = 0.0) -> list[float]:
        """Compute texts, each as long as the longest: when they end, in ms; a ``queue_simulation.Run``."""
        longest = max(lengths)
        known = self._padded_ms[longest, len(lengths)]
        if len(known) == self._padded_runs:
            return [median(known)] * len(lengths)
        drawn = random.Random(len(known))
        items = [
            EncoderItem("embed", array("i", drawn.choices(range(self._vocab_size), k=length)))
            for length in ([longest] * len(lengths) if self._makes_equal else lengths)
        ]
        begin_s = self._clock_s()
        self._padded.compute(items)
        taken_ms = (self._clock_s() - begin_s) * 1000
        known.append(taken_ms)
        return [taken_ms] * len(lengths)

    def costs(self, extent: Extent, budget_ms: float, *, pads: bool) -> CostTable:
        """Measure a table as a worker does.

        Args:
            extent: of the table.
            budget_ms: computing time.
            pads: whether the cells are those of the padded runtime; the packed ones never are.

        Raises:
            MeasurementError: a batch could not be computed.
        """
        packed = EncoderScratch(self._packed, self._vocab_size, self._step_tokens)
        padded = EncoderScratch(self._padded, self._vocab_size, _NO_LIMIT) if pads else packed
        measurement = Measurement(BothScratches(packed, padded), extent, budget_ms, self._clock_s)
        while measurement.advance():
            pass
        return measurement.table()

    def _make_job(self, length: int) -> bytes:
        ids = random.Random(length).choices(range(self._vocab_size), k=length)
        return EncoderJob("embed", (length,), (length,), pack_ids([ids]), EncoderParams(), "r").encode()


class BothScratches:
    """A ``measurement.Scratch`` that measures packed sizes on one and padded ones on another."""

    def __init__(self, packed: EncoderScratch, padded: EncoderScratch) -> None:
        self._packed = packed
        self._padded = padded
        self._chosen = packed

    @property
    def has_rows(self) -> bool:
        """Whether a step would do anything."""
        return self._chosen.has_rows

    def put(self, lengths: Sequence[int], *, packed: bool) -> None:
        """Give one of the two texts of these lengths."""
        self._chosen = self._packed if packed else self._padded
        self._chosen.put(lengths, packed=packed)

    def step(self) -> str:
        """Compute one step; return what went wrong, "" if nothing."""
        return self._chosen.step()

    def clear(self) -> None:
        """Forget what was put."""
        self._chosen.clear()


def _engine(loaded: LoadedEncoder, runner: EncoderRunner, step_tokens: int) -> EncoderEngine:
    findings = Findings(runner.width, loaded.sentences.normalise)
    return EncoderEngine(runner, findings, step_tokens=step_tokens)


def _clock(runner: EncoderRunner, vocab_size: int, num_threads: int) -> PacedClock:
    ids = tuple(random.Random(0).choices(range(vocab_size), k=_PACE_TOKENS))
    work = partial(runner.run, [EncoderItem("embed", ids)] * _PACE_ROWS)
    return PacedClock(work, time.process_time if num_threads == 1 else time.perf_counter, _PACE_S)
