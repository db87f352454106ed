"""The engine process: ``python -m headrace.workers.engine.process``, settings in ``HEADRACE_ENGINE``.

It serves one courier at a time over a Unix socket and outlives it: when a courier ends, its rows are forgotten, and
the next one finds the model loaded. It ends on SIGTERM and with the process that started it.

Start it with ``GOMP_SPINCOUNT=10000`` in its environment where it shares a machine: by default an OpenMP thread spins
for milliseconds before it sleeps, and with ``OMP_WAIT_POLICY=PASSIVE`` it sleeps between any two operations, which
doubles the time of a step. The runtime reads both when torch is imported, before any code of this file.
"""

import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from headrace.errors import ConfigurationError, DecodeError, InvalidRequestError
from headrace.kernels.planned import PlannedOperations
from headrace.kernels.reference import ReferenceOperations
from headrace.workers.channel import Add, Costs, Drop, Measure, Message, Tokens
from headrace.workers.engine.assembly import host_engine
from headrace.workers.engine.cost_keeper import CostKeeper
from headrace.workers.engine.costing import keep_costs
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.link import CourierLink
from headrace.workers.engine.listening import ORPHAN_CHECK_S, Served, listen, run_process
from headrace.workers.engine.loading import load
from headrace.workers.engine.settings import EngineSettings
from headrace.workers.garbage import look_seldom

# By its own name, which as a program is "__main__".
logger = logging.getLogger("headrace.workers.engine")


def serve(settings: EngineSettings) -> None:
    """Load the model, listen, and serve couriers until the parent is gone (or an exception ends it).

    Raises:
        ModelError: the model folder cannot be served.
        ConfigurationError: the settings are those of an encoder.
        OSError: the socket cannot be bound.
    """
    if settings.dtype == "int8":
        raise ConfigurationError("int8 is for encoders; this model writes text: set dtype to float32 or bfloat16")
    torch.set_num_threads(settings.num_threads)
    start_s = time.monotonic()
    engine, costs = _load(settings)
    look_seldom()
    logger.info("loaded %s in %.2f s", settings.model_dir, time.monotonic() - start_s)
    listen(settings, Served(engine.kv_tokens, costs, partial(_turn, engine=engine, costs=costs), engine.clear))


def _load(settings: EngineSettings) -> tuple[Engine, CostKeeper]:
    folder, dtype, device = Path(settings.model_dir), getattr(torch, settings.dtype), torch.device(settings.device)
    if device.type != "cpu":
        # Not before: a machine without a GPU has no PyCUDA.
        from headrace.workers.engine.device_engine import DeviceEngine, DeviceLimits

        limits = DeviceLimits(
            max_rows=settings.max_rows,
            row_tokens=settings.row_tokens,
            step_tokens=settings.step_tokens,
            kv_tokens=settings.kv_tokens or None,
            memory_fraction=settings.memory_fraction,
            table_fraction=settings.table_fraction,
            page_size=settings.page_size,
            cuda_graphs=settings.cuda_graphs,
            prompt_graphs=settings.prompt_graphs,
            stall_ms=settings.stall_ms,
            prompt_step_ms=settings.prompt_step_ms,
            overtaking_rows=settings.overtaking_rows,
            deterministic=settings.deterministic,
        )
        made = DeviceEngine(partial(load, folder, device=device), device, dtype, limits)
        known = replace(settings, kv_tokens=made.engine.kv_tokens)
        return made.engine, keep_costs(known, made.loaded.model.config, made.device, made.scratch)
    operations = PlannedOperations(ReferenceOperations())
    loaded = load(folder, operations, dtype)

    def make(kv_tokens: int) -> Engine:
        return host_engine(
            loaded,
            operations,
            max_rows=settings.max_rows,
            kv_tokens=kv_tokens,
            step_tokens=settings.step_tokens,
            page_size=settings.page_size,
            overtaking_rows=settings.overtaking_rows,
        )

    return make(settings.kv_tokens), keep_costs(settings, loaded.model.config, device, make)


def _turn(link: CourierLink, engine: Engine, costs: CostKeeper) -> None:
    """Hear the courier, waiting only if there is nothing to compute; then take and send one step's tokens.

    Whoever runs ahead has started the step after it by then: sending, and hearing what comes next, delays no step.
    """
    is_idle = not engine.has_rows and not costs.is_measuring
    for message in link.receive(ORPHAN_CHECK_S if is_idle else 0):
        _handle(message, link, engine, costs)
    if engine.has_rows:
        costs.give_way()
        tokens = engine.step()
        # Also of a step in which no row drew a token: an engine that says nothing for long is taken for hung.
        link.send(tokens)
        costs.observe(engine.work, tokens.step_ms)
    else:
        costs.use_idle_moment()
    if (table := costs.news()) is not None:
        link.send(Costs(table))


def _handle(message: Message, link: CourierLink, engine: Engine, costs: CostKeeper) -> None:
    match message:
        case Add():
            try:
                engine.add(message)
            except InvalidRequestError as error:
                logger.warning("row %d refused: %s", message.row, error)
                link.send(Tokens(((message.row, 0, "error"),), str(error)))
        case Drop():
            engine.drop(message)
        case Measure():
            costs.measure_again()
        case _:
            raise DecodeError(f"a courier does not say {message.kind!r}")


def main() -> None:
    """Run the process that the environment describes."""
    run_process(serve)


if __name__ == "__main__":
    main()
