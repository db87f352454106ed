"""The process of an encoder's engine: ``python -m headrace.workers.encoder.process``, settings in ``HEADRACE_ENGINE``.

It lives as the engine of a model that writes does (``headrace.workers.engine.process``).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from headrace.errors import DecodeError
from headrace.workers.channel import Costs, Drop, Encode, Measure, Message
from headrace.workers.costs.cost_file import CostFile, CostKey
from headrace.workers.encoder.assembly import load_for
from headrace.workers.encoder.device_runner import DeviceRunner
from headrace.workers.encoder.engine import EncoderEngine
from headrace.workers.encoder.findings import Findings
from headrace.workers.encoder.loading import LoadedEncoder
from headrace.workers.encoder.runner import EncoderRunner
from headrace.workers.encoder.runtimes import DeviceRuntime
from headrace.workers.encoder.scratch import EncoderScratch
from headrace.workers.encoder.turns import TurnClock
from headrace.workers.engine.cost_keeper import CostKeeper
from headrace.workers.engine.device_name import device_name
from headrace.workers.engine.link import CourierLink
from headrace.workers.engine.listening import ORPHAN_CHECK_S, Served, listen, run_process
from headrace.workers.engine.measurement import Extent
from headrace.workers.engine.settings import EngineSettings
from headrace.workers.garbage import look_seldom

# By its own name, which as a program is "__main__".
logger = logging.getLogger("headrace.workers.encoder")

#: One is computed, and one waits for it; the longer others wait in the queue, the better they are cut.
_MAX_BATCHES = 2
#: Rows of the largest batch that is measured, where an engine takes fewer requests: each may bring many texts.
_MIN_MEASURED_ROWS = 128
#: Tokens of the longest text where packed tokens are measured: more of them are more texts and not longer ones, or what
#: attention to long texts costs would seem to be what large batches cost, and windows would be cut for nothing.
PACKED_LENGTH = 128


def serve(settings: EngineSettings) -> None:
    """Load the model, listen, and serve couriers until the parent is gone (or an exception ends it).

    Raises:
        ModelError: the model folder cannot be served.
        ConfigurationError: there is no such device.
        OSError: the socket cannot be bound.
    """
    torch.set_num_threads(settings.num_threads)
    start_s = time.monotonic()
    loaded = load_for(Path(settings.model_dir), device_of(settings), settings.dtype)
    runner = make_runner(settings, loaded)
    engine = make_engine(loaded, runner, settings.step_tokens)
    costs = keep_costs(settings, loaded, runner)
    logger.info("loaded %s in %.2f s", settings.model_dir, time.monotonic() - start_s)
    look_seldom()
    turn = partial(_turn, engine=engine, costs=costs, prepare=runner.prepare, clock=TurnClock(own_clock(settings)))
    # A step's answers may be more than a socket holds: what were kept of them would wait until after the next step.
    listen(settings, Served(settings.kv_tokens, costs, turn, engine.clear, _MAX_BATCHES, most_unsent_bytes=0))


def device_of(settings: EngineSettings) -> torch.device:
    """Where the engine computes; a GPU without a number is the first one."""
    device = torch.device(settings.device)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def own_clock(settings: EngineSettings) -> Callable[[], float]:
    """What goes on while the engine computes: processor time of its thread, but on a GPU, which it has for itself."""
    return time.thread_time if device_of(settings).type == "cpu" else time.perf_counter


def make_runner(settings: EngineSettings, loaded: LoadedEncoder) -> EncoderRunner:
    """Put a runner together, and let one on a GPU get ready."""
    runtime = loaded.encoder.model.runtime
    if not isinstance(runtime, DeviceRuntime):
        return EncoderRunner(loaded, batch_tokens=settings.step_tokens)
    runtime.uses_graphs, runtime.max_graphs = settings.cuda_graphs, settings.encoder_graphs
    return DeviceRunner(loaded, device_of(settings), batch_tokens=settings.step_tokens)


def make_engine(loaded: LoadedEncoder, runner: EncoderRunner, step_tokens: int) -> EncoderEngine:
    """Put an engine together.

    Args:
        loaded: the model.
        runner: over it.
        step_tokens: tokens computed in one step at most.
    """
    return EncoderEngine(runner, Findings(runner.width, loaded.sentences.normalise), step_tokens=step_tokens)


def keep_costs(settings: EngineSettings, loaded: LoadedEncoder, runner: EncoderRunner) -> CostKeeper:
    """Make the keeper of an encoder's costs."""
    name = device_name(device_of(settings), settings.num_threads)
    key = CostKey(name, settings.revision, settings.dtype, settings.page_size, settings.step_tokens)
    vocab_size = loaded.encoder.model.config.vocab_size
    extent = Extent(
        max_length=runner.text_tokens,
        max_packed_length=PACKED_LENGTH,
        max_rows=max(settings.max_rows, _MIN_MEASURED_ROWS),
        max_tokens=settings.kv_tokens,
    )
    return CostKeeper(
        extent,
        lambda: EncoderScratch(runner, vocab_size, settings.step_tokens),
        worker_class=key.worker_class,
        budget_ms=settings.measure_ms,
        file=CostFile(Path(settings.costs_dir), key) if settings.costs_dir else None,
        own_clock_s=own_clock(settings),
    )


def _turn(
    link: CourierLink, engine: EncoderEngine, costs: CostKeeper, prepare: Callable[[], bool], clock: TurnClock
) -> None:
    """Hear the courier, waiting only if there is nothing to compute; then compute and send one step."""
    _hear(link, 0, engine, costs)
    if not engine.has_rows:
        clock.rest()
        if not costs.is_measuring and not prepare():
            _hear(link, ORPHAN_CHECK_S, engine, costs)
    if engine.has_rows:
        costs.give_way()
        num_batches = engine.num_batches
        clock.begin()
        encoded = engine.step()
        took = clock.end()
        # Also of a step that completes no row: an engine that says nothing for long is taken for hung.
        link.send(replace(encoded, step_ms=took.step_ms))
        # What others take of a step's time, while they see to batches, is no cost of its tokens.
        costs.observe(engine.work, max(took.own_ms, took.step_ms - costs.batch_ms))
        if engine.num_batches < num_batches and (turn := clock.end_batch()) is not None:
            costs.observe_turn(turn.own_ms, turn.turn_ms)
    else:
        costs.use_idle_moment()
    if (table := costs.news()) is not None:
        link.send(Costs(table))


def _hear(link: CourierLink, timeout_s: float, engine: EncoderEngine, costs: CostKeeper) -> None:
    for message in link.receive(timeout_s):
        _handle(message, engine, costs)


def _handle(message: Message, engine: EncoderEngine, costs: CostKeeper) -> None:
    match message:
        case Encode():
            engine.add(message)
        case Drop():
            engine.drop(message.rows)
        case Measure():
            costs.measure_again()
        case _:
            raise DecodeError(f"a courier does not say {message.kind!r} to an encoder")


def main() -> None:
    """Run the process that the environment describes."""
    run_process(serve)


if __name__ == "__main__":
    main()
