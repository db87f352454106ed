"""How the processes of a fleet log: a line an event on standard error, and never a password.

Processes call ``configure`` once at their start; libraries never do.
"""

import logging
import re

_FORMAT = "%(asctime)s.%(msecs)03d %(process)7d %(levelname).1s %(name)s: %(message)s"
_PASSWORD = re.compile(r"(://[^/\s:@]*):[^@/\s]+@")


def configure(level: str) -> None:
    """Log from ``level`` (debug, info, warning, error) up."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(_FORMAT, datefmt="%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _Formatter(logging.Formatter):
    """Names a logger by its last part, and takes passwords out of URLs, whoever has put them into a message."""

    def format(self, record: logging.LogRecord) -> str:
        shortened = logging.makeLogRecord(record.__dict__ | {"name": record.name.rpartition(".")[2]})
        return _PASSWORD.sub(r"\1:***@", super().format(shortened))
