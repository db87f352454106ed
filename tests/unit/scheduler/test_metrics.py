"""A scheduler's figures, and where they are served."""

import re
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from tests.conftest import fast_settings
from tests.unit.contract.actors import Actors

from headrace.batch_log import BatchRecord, BatchRun
from headrace.broker import Broker
from headrace.errors import BrokerUnavailableError, ConfigurationError
from headrace.moves import Reaped
from headrace.testing.servers import Server, free_port
from headrace.workers.metrics import Figures, serving
from headrace.workers.scheduler.metrics import Tally, cost_ratios, gather


def read(url: str) -> str:
    with urlopen(url, timeout=5) as reply:
        return str(reply.read().decode())


def test_without_a_broker_a_scheduler_still_tells_of_itself(valkey_server: Server) -> None:
    broker = Broker.connect(fast_settings(redis_url=valkey_server.url))

    def away() -> int:
        raise BrokerUnavailableError("away")

    broker.now_ms = away  # type: ignore[method-assign]
    tally = Tally(leads=True)
    tally.verdicts["queued"] += 2
    tally.add(Reaped(3, 1, 2, 0, amnesty=False))
    figures = Figures("test")
    gather(figures, broker, tally)
    broker.close()
    found = {
        (sample.name, *sample.labels.values()): sample.value for family in figures.families for sample in family.samples
    }
    assert found == {
        ("headrace_scheduler_leads", "test"): 1,
        ("headrace_scheduler_requests_total", "test", "queued"): 2,
        ("headrace_scheduler_dispatched_requests_total", "test"): 0,
        ("headrace_scheduler_reaped_requests_total", "test", "requeued"): 1,
        ("headrace_scheduler_reaped_requests_total", "test", "expired"): 2,
        ("headrace_scheduler_reaped_requests_total", "test", "dead"): 0,
        ("headrace_broker_up", "test"): 0,
    }


def test_the_cost_ratio_is_of_the_batches_that_have_run_by_class() -> None:
    def record(worker_class: str, predicted_ms: float, real_ms: float | None) -> BatchRecord:
        run = None if real_ms is None else BatchRun("1-0", worker_class, "w", 1, 1, real_ms)
        return BatchRecord("1-0", worker_class, 1, 1, 1, predicted_ms, run)

    batches = (record("a", 10, 20), record("a", 30, 20), record("a", 99, None), record("b", 0, 5), record("c", 4, 1))
    assert cost_ratios(batches) == {"a": 1.0, "c": 0.25}


def test_figures_are_served_where_the_settings_say_and_only_while_the_block_runs() -> None:
    settings = fast_settings(metrics_port=free_port())
    url = f"http://127.0.0.1:{settings.metrics_port}/metrics"
    values = iter((1.5, 2.5))
    with serving(settings, lambda figures: figures.gauge("answer_seconds", "The answer.", next(values))):
        first = read(url)
        assert "# HELP headrace_answer_seconds The answer.\n# TYPE headrace_answer_seconds gauge\n" in first
        assert 'headrace_answer_seconds{queue="test"} 1.5\n' in first
        assert 'headrace_answer_seconds{queue="test"} 2.5\n' in read(url)
    with pytest.raises(URLError):
        read(url)


def test_a_port_that_is_taken_is_named_with_what_to_do(valkey_server: Server) -> None:
    with Server("valkey", port=free_port()) as taken:
        settings = fast_settings(metrics_port=taken.port)
        with (
            pytest.raises(ConfigurationError, match=rf"metrics_port: cannot listen on 127.0.0.1:{taken.port}"),
            serving(settings, lambda figures: None),
        ):
            pass


def test_no_port_means_no_server() -> None:
    def never(figures: Figures) -> None:
        raise AssertionError("nobody asked")

    with serving(fast_settings(), never):
        pass


def test_the_response_cache_is_told_of_where_there_is_one(valkey_server: Server) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"`(headrace_queue_cache_\w+)`", text))
    for entries, expected in ((0, set()), (5, {("no", 1.0), ("yes", 0.0)})):
        settings = fast_settings(redis_url=valkey_server.url, cache_entries=entries)
        broker = Broker.connect(settings)
        actors = Actors(broker)
        actors.queued(f"r{entries}", cache_key="k" if entries else "")
        figures = Figures("test")
        gather(figures, broker, Tally())
        broker.close()
        samples = [sample for family in figures.families for sample in family.samples]
        looks = {(s.labels["found"], s.value) for s in samples if s.name == "headrace_queue_cache_looks_total"}
        assert looks == expected
        told = {s.name for s in samples if s.name.startswith("headrace_queue_cache_")}
        assert told == (documented if entries else set())
