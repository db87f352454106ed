"""An engine's socket: one courier after the other is served on it, until the parent process is gone."""

import logging
import os
import select
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import (
    CONFIGURATION_STATUS,
    ConfigurationError,
    DecodeError,
    DeviceLostError,
    HeadraceError,
)
from headrace.lifetime import end_with_parent, exit_on_sigterm, is_orphan
from headrace.logs import configure
from headrace.workers.channel import Costs, Ready
from headrace.workers.engine.cost_keeper import CostKeeper
from headrace.workers.engine.link import MOST_UNSENT_BYTES, CourierGoneError, CourierLink
from headrace.workers.engine.settings import ENVIRONMENT_VARIABLE, EngineSettings

# All that an engine's process does speaks as one.
logger = logging.getLogger("headrace.workers.engine")

#: How often an idle engine looks whether its parent still lives, where no signal tells it.
ORPHAN_CHECK_S = 1.0


@dataclass(frozen=True, slots=True)
class Served:
    """What a socket is served with.

    Attributes:
        kv_tokens: tokens that fit into the engine's memory.
        costs: what batches cost.
        turn: hears the courier, computes one step and tells it.
        clear: forgets all rows.
        max_batches: that a courier gives it at once; 0: any number.
        most_unsent_bytes: kept for a courier that is busy; see ``CourierLink``.
    """

    kv_tokens: int
    costs: CostKeeper
    turn: Callable[[CourierLink], None]
    clear: Callable[[], None]
    max_batches: int = 0
    most_unsent_bytes: int = MOST_UNSENT_BYTES


def run_process(serve: Callable[[EngineSettings], None]) -> None:
    """Run an engine's process as its environment describes it.

    If it cannot be run, one line of log says why, and the exit status tells the supervisor not to try again; but a GPU
    that has failed may serve the next process.
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
        sys.exit(1 if isinstance(error, DeviceLostError) else CONFIGURATION_STATUS)


def listen(settings: EngineSettings, served: Served) -> None:
    """Serve couriers until the parent is gone, or an exception ends it.

    Raises:
        OSError: the socket cannot be bound.
    """
    path = Path(settings.socket_path)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        try:
            listener.listen()
            logger.info("listening on %s", path)
            while not is_orphan(settings.parent_pid):
                if select.select([listener], [], [], ORPHAN_CHECK_S)[0]:
                    _serve_courier(listener, served, settings)
        finally:
            path.unlink(missing_ok=True)
            served.costs.save()
    logger.info("the parent is gone")


def _serve_courier(listener: socket.socket, served: Served, settings: EngineSettings) -> None:
    connection, _ = listener.accept()
    logger.info("courier connected")
    costs = served.costs
    with connection:
        link = CourierLink(connection, served.most_unsent_bytes)
        try:
            link.send(
                Ready(
                    os.getpid(),
                    settings.revision,
                    settings.max_rows,
                    served.kv_tokens,
                    costs.worker_class,
                    served.max_batches,
                )
            )
            link.send(Costs(costs.tell()))
            while not is_orphan(settings.parent_pid):
                served.turn(link)
        except CourierGoneError as error:
            logger.info("%s", error)
        except DecodeError as error:
            logger.error("courier hung up on: %s", error)
        finally:
            served.clear()
