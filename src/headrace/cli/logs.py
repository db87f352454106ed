"""How the processes of a fleet log: a line an event on stderr, and never a password."""

import logging
import re

from headrace.config import Settings

_PASSWORD = re.compile(r"(://[^/\s:@]*):[^@/\s]+@")


class RedactingFormatter(logging.Formatter):
    """Takes the passwords out of URLs, whoever has put them into a message or a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line without passwords."""
        return _PASSWORD.sub(r"\1:***@", super().format(record))


def configure_logging(settings: Settings) -> None:
    """Send the log to stderr; for the processes of a fleet, not for commands that answer a question."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        RedactingFormatter("%(asctime)s.%(msecs)03d %(process)7d %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
