"""A fleet that all tests of this folder share: real weights, real processes, a real Valkey."""

from collections.abc import Iterator

import pytest
from rich.console import Console
from tests.conftest import fast_settings
from tests.fleet.rq_workers import RqBench, open_bench

from headrace.config import Settings
from headrace.errors import ConfigurationError
from headrace.testing.fleet import Fleet
from headrace.testing.servers import Server, free_port
from headrace.workers.embedded_broker import check_port
from headrace.workers.model_store.store import ModelFolder, default_cache_dir, pull

MODEL = "smollm2-135m"
LEASE_MS = 2_000
ENGINE_TIMEOUT_MS = 15_000


def fleet_settings(url: str, **given: object) -> Settings:
    """Settings of a fleet beside which others run: one core, and a short lease."""
    small = {"model": MODEL, "lease_ms": LEASE_MS, "max_context_tokens": 2_048, "num_threads": 1, "drain_ms": 5_000}
    small |= {"engine_timeout_ms": ENGINE_TIMEOUT_MS, "measure_ms": 0}
    return Settings.load(redis_url=url, **{**small, **given})


@pytest.fixture(scope="session")
def model() -> ModelFolder:
    """SmolLM2-135M-Instruct; fetched once into the user's cache."""
    return pull(MODEL, default_cache_dir(), Console(stderr=True))


@pytest.fixture(scope="session")
def fleet(model: ModelFolder) -> Iterator[Fleet]:
    """One worker on a server of its own, which keeps an append-only file."""
    options = ["--appendonly", "yes", "--appendfsync", "everysec"]
    ports = _free_ports(2)
    with Server("valkey", options) as server, Fleet(fleet_settings(server.url, metrics_port=ports)) as fleet:
        yield fleet


@pytest.fixture
def bench(valkey_server: Server) -> Iterator[RqBench]:
    """RQ's queue beside a stub fleet, with a short lease."""
    settings = fast_settings(
        redis_url=valkey_server.url, rq_lease_ms=3_000, rq_progress_ms=50, rq_in_flight=2, max_rq_job_bytes=10_000
    )
    with open_bench(settings, valkey_server) as bench:
        yield bench


def _free_ports(number: int) -> int:
    """The first of so many ports in a row that nobody uses at this moment."""
    while True:
        first = free_port()
        try:
            for port in range(first, first + number):
                check_port(port)
        except ConfigurationError:
            continue
        return first
