"""The engine process: ``python -m headrace.workers.engine.process``, settings in ``HEADRACE_ENGINE``.

It serves one courier at a time over a Unix socket and outlives it: when a courier ends, its rows are forgotten, and
the next one finds the model loaded. It ends on SIGTERM and with the process that started it.

Start it with ``GOMP_SPINCOUNT=10000`` in its environment where it shares a machine: by default an OpenMP thread spins
for milliseconds before it sleeps, and with ``OMP_WAIT_POLICY=PASSIVE`` it sleeps between any two operations, which
doubles the time of a step. The runtime reads both when torch is imported, before any code of this file.
"""

import logging
import os
import select
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from headrace.errors import CONFIGURATION_STATUS, ConfigurationError, DecodeError, HeadraceError, InvalidRequestError
from headrace.kernels.planned import PlannedOperations
from headrace.kernels.reference import ReferenceOperations
from headrace.lifetime import end_with_parent, exit_on_sigterm, is_orphan
from headrace.logs import configure
from headrace.workers.channel import Add, Costs, Drop, Measure, Message, Ready, Tokens
from headrace.workers.engine.assembly import host_engine
from headrace.workers.engine.cost_keeper import CostKeeper
from headrace.workers.engine.costing import keep_costs
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.link import CourierGoneError, CourierLink
from headrace.workers.engine.loading import load
from headrace.workers.engine.settings import ENVIRONMENT_VARIABLE, EngineSettings

# By its own name, which as a program is "__main__".
logger = logging.getLogger("headrace.workers.engine")

# How often an idle engine looks whether its parent still lives, where no signal tells it.
_ORPHAN_CHECK_S = 1.0


def serve(settings: EngineSettings) -> None:
    """Load the model, listen, and serve couriers until the parent is gone (or an exception ends it).

    Raises:
        ModelError: the model folder cannot be served.
        OSError: the socket cannot be bound.
    """
    torch.set_num_threads(settings.num_threads)
    start_s = time.monotonic()
    engine, costs = _load(settings)
    logger.info("loaded %s in %.2f s", settings.model_dir, time.monotonic() - start_s)
    path = Path(settings.socket_path)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        try:
            listener.listen()
            logger.info("listening on %s", path)
            while not is_orphan(settings.parent_pid):
                if select.select([listener], [], [], _ORPHAN_CHECK_S)[0]:
                    _serve_courier(listener, engine, costs, settings)
        finally:
            path.unlink(missing_ok=True)
            costs.save()
    logger.info("the parent is gone")


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
            page_size=settings.page_size,
            cuda_graphs=settings.cuda_graphs,
        )
        made = DeviceEngine(partial(load, folder), device, dtype, limits)
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
        )

    return make(settings.kv_tokens), keep_costs(settings, loaded.model.config, device, make)


def _serve_courier(listener: socket.socket, engine: Engine, costs: CostKeeper, settings: EngineSettings) -> None:
    connection, _ = listener.accept()
    logger.info("courier connected")
    with connection:
        link = CourierLink(connection)
        try:
            link.send(Ready(os.getpid(), settings.revision, settings.max_rows, engine.kv_tokens, costs.worker_class))
            link.send(Costs(costs.tell()))
            while not is_orphan(settings.parent_pid):
                _turn(link, engine, costs)
        except CourierGoneError as error:
            logger.info("%s", error)
        except DecodeError as error:
            logger.error("courier hung up on: %s", error)
        finally:
            engine.clear()


def _turn(link: CourierLink, engine: Engine, costs: CostKeeper) -> None:
    """Hear the courier, waiting only if there is nothing to compute; then take and send one step's tokens.

    Whoever runs ahead has started the step after it by then: sending, and hearing what comes next, delays no step.
    """
    is_idle = not engine.has_rows and not costs.is_measuring
    for message in link.receive(_ORPHAN_CHECK_S if is_idle else 0):
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
    """Run the process that the environment describes.

    If it cannot be run, one line of log says why, and the exit status tells the supervisor not to try again.
    """
    configure("info")
    exit_on_sigterm()
    end_with_parent()
    try:
        text = os.environ.get(ENVIRONMENT_VARIABLE)
        if text is None:
            raise ConfigurationError(f"{ENVIRONMENT_VARIABLE} is not set")
        settings = EngineSettings.from_json(text)
        configure(settings.log_level)
        serve(settings)
    except HeadraceError as error:
        logger.error("%s", error)
        sys.exit(CONFIGURATION_STATUS)


if __name__ == "__main__":
    main()
