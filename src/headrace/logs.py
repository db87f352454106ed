"""How log lines look. Processes call ``configure`` once at their start; libraries never do."""

import logging
import sys

_FORMAT = "%(asctime)s %(levelname).1s %(name)s %(message)s"


def configure(level: str) -> None:
    """Log to standard error from ``level`` (debug, info, warning, error) up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ShortName(_FORMAT, datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


class _ShortName(logging.Formatter):
    """Names a logger by its last part: ``courier`` says what ``headrace.workers.courier.courier`` says."""

    def format(self, record: logging.LogRecord) -> str:
        record.name = record.name.rpartition(".")[2]
        return super().format(record)
