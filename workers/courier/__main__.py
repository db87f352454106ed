"""The courier process. A worker starts it beside its engine; it exits when it has drained."""

import asyncio
import logging
import os
import signal
import sys
from functools import partial

from headrace.async_broker import AsyncBroker
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError, HeadraceError, exit_status
from headrace.logs import configure
from headrace.workers.channel import SOCKET_VARIABLE
from headrace.workers.courier import metrics
from headrace.workers.courier.claimer import MakeIntake
from headrace.workers.courier.courier import Courier
from headrace.workers.courier.encoder_intake import EncoderIntake
from headrace.workers.courier.intake import Intake
from headrace.workers.metrics import Figures, serving
from headrace.workers.model_store.store import default_cache_dir, resolve
from headrace.workers.text.encoder_facts import is_encoder
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer
from headrace.workers.text.tokenizer import Tokenizer

# By its own name, which as a program is "__main__".
log = logging.getLogger("headrace.workers.courier")

_PAUSE_S = 2.0
_LOOK_TIMEOUT_S = 5.0


async def serve(settings: Settings, socket_path: str) -> None:
    """Run a courier until SIGTERM or SIGINT."""
    folder = resolve(settings.model, settings.cache_dir or default_cache_dir())
    # Before the server is waited for: a folder that cannot be served is a reason to end.
    tokenizer = (EncoderTokenizer if is_encoder(folder.path) else Tokenizer).from_folder(folder.path)
    broker = await _connect(settings)
    courier = Courier(broker, _intakes(broker, tokenizer), settings, socket_path)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, courier.stop)

    def gather(figures: Figures) -> None:
        metrics.gather(figures, asyncio.run_coroutine_threadsafe(courier.look(), loop).result(_LOOK_TIMEOUT_S))

    try:
        with serving(settings, gather):
            await courier.run()
    finally:
        await broker.close()


def _intakes(broker: AsyncBroker, tokenizer: Tokenizer | EncoderTokenizer) -> MakeIntake:
    if isinstance(tokenizer, EncoderTokenizer):
        return partial(EncoderIntake, tokenizer)
    return partial(Intake, broker, tokenizer)


async def _connect(settings: Settings) -> AsyncBroker:
    """Connect as soon as there is a server: one that is away for a while is no reason to start over and over."""
    while True:
        try:
            return await AsyncBroker.connect(settings)
        except BrokerUnavailableError as error:
            log.warning("waiting for the broker: %s", error)
            await asyncio.sleep(_PAUSE_S)


def main() -> None:
    """Entry point of ``python -m headrace.workers.courier``."""
    try:
        settings = Settings.load()
        configure(settings.log_level)
        asyncio.run(serve(settings, os.environ[SOCKET_VARIABLE]))
    except HeadraceError as error:
        log.error("%s", error)
        sys.exit(exit_status(error))


if __name__ == "__main__":
    main()
