"""Serves a process's metrics to Prometheus, where ``metrics_port`` asks for it: ``http://<host>:<port>/metrics``.

A scrape is answered by a thread of its own, which asks for the figures at that moment; between scrapes nothing is done
for it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from headrace.config import Settings
from headrace.errors import ConfigurationError

log = logging.getLogger(__name__)

#: Labels and value of each sample of a figure.
Samples = Iterable[tuple[dict[str, str], float]]


class Figures:
    """One scrape's figures, as they are gathered."""

    def __init__(self, queue: str) -> None:
        from prometheus_client import Metric

        self._queue = queue
        self.families: list[Metric] = []

    def gauge(self, name: str, text: str, samples: Samples | float) -> None:
        """A figure that goes up and down; a number alone is a sample without labels."""
        self._add(name, text, "gauge", samples)

    def counter(self, name: str, text: str, samples: Samples | float) -> None:
        """A figure that only grows while the process lives; ``_total`` is put behind its name."""
        self._add(name, text, "counter", samples)

    def _add(self, name: str, text: str, kind: str, samples: Samples | float) -> None:
        from prometheus_client import Metric

        family = Metric(f"headrace_{name}", text, kind)
        suffix = "_total" if kind == "counter" else ""
        for labels, value in [({}, samples)] if isinstance(samples, int | float) else samples:
            family.add_sample(f"headrace_{name}{suffix}", {"queue": self._queue} | labels, value)
        self.families.append(family)


@contextmanager
def serving(settings: Settings, gather: Callable[[Figures], None]) -> Iterator[None]:
    """Serve figures while the block runs; without a ``metrics_port``, serve none.

    Args:
        settings: ``metrics_host`` and ``metrics_port`` say where.
        gather: called at every scrape, in a thread of its own.

    Raises:
        ConfigurationError: nobody can listen there.
    """
    if settings.metrics_port == 0:
        yield
        return
    from prometheus_client import CollectorRegistry, Metric, ProcessCollector, start_http_server
    from prometheus_client.registry import Collector

    class Gatherer(Collector):
        def collect(self) -> Iterable[Metric]:
            figures = Figures(settings.queue_name)
            gather(figures)
            return figures.families

        def describe(self) -> Iterable[Metric]:
            return ()  # or the registry would ask for figures before there are any

    registry = CollectorRegistry()
    registry.register(Gatherer())
    ProcessCollector(registry=registry)
    address = f"{settings.metrics_host}:{settings.metrics_port}"
    try:
        server, thread = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_port: cannot listen on {address} ({error.strerror}); choose another port, or 0 for none"
        ) from error
    log.info("metrics on http://%s/metrics", address)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
