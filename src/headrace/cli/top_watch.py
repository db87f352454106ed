"""The loop of ``headrace top``: looks at a queue again and again, also while its server is away."""

import signal
import time

import typer
from rich.console import Console, RenderableType
from rich.live import Live

from headrace.broker import Broker
from headrace.cli.top_view import frame
from headrace.config import Settings
from headrace.errors import BrokerUnavailableError, DecodeError
from headrace.overview import Overview, look
from headrace.redaction import redact

#: As many as any terminal shows.
_MAX_BATCHES = 200
_ONCE_BATCHES = 10


class Watch:
    """Looks at a queue whose server may come and go, and remembers what it saw last."""

    def __init__(self, settings: Settings, num_batches: int) -> None:
        self._settings = settings
        self._num_batches = num_batches
        self._broker: Broker | None = None
        self._found: Overview | None = None

    def look(self) -> Overview:
        """Look once; raises BrokerUnavailableError."""
        if self._broker is None:
            self._broker = Broker.connect(self._settings)
        self._found = look(self._broker, self._num_batches)
        return self._found

    def frame(self, width: int, height: int | None) -> RenderableType:
        """Look, and draw what there is: where the server is away, that it is, above what was seen last."""
        trouble = ""
        try:
            self.look()
        except (BrokerUnavailableError, DecodeError) as error:
            trouble = str(error)
        return frame(self._found, trouble, url=redact(self._settings.redis_url), width=width, height=height)

    def close(self) -> None:
        """Close the connection."""
        if self._broker is not None:
            self._broker.close()


def print_once(settings: Settings) -> None:
    """Print one frame, of any length.

    Raises:
        BrokerUnavailableError: no server answers.
    """
    console, watch = Console(), Watch(settings, _ONCE_BATCHES)
    try:
        url = redact(settings.redis_url)
        console.print(frame(watch.look(), "", url=url, width=console.width, height=None))
    finally:
        watch.close()


def watch_for_ever(settings: Settings, interval_s: float) -> None:
    """Show frame after frame until Ctrl-C or SIGTERM, which both give the terminal back as it was."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console, watch = Console(), Watch(settings, _MAX_BATCHES)
    try:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                live.update(watch.frame(*console.size), refresh=True)
                time.sleep(interval_s)
    except KeyboardInterrupt:
        raise typer.Exit from None
    finally:
        watch.close()
