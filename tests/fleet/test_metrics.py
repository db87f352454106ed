"""What Prometheus reads from a running fleet: figures that move with the requests."""

import re
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from tests.fleet.conftest import MODEL
from tests.waiting import until

from headrace.testing.chaos import submit
from headrace.testing.collector import Collector
from headrace.testing.fleet import Fleet

#: Figures by name and the values of their labels other than the queue.
Figures = dict[tuple[str, ...], float]


def scrape(fleet: Fleet, number: int) -> Figures:
    """One process's figures; the scheduler is 0, the first worker 1."""
    with urlopen(f"http://127.0.0.1:{fleet.settings.metrics_port + number}/metrics", timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    samples = [sample for family in families for sample in family.samples if sample.name.startswith("headrace_")]
    assert {sample.labels.pop("queue") for sample in samples} == {MODEL}
    return {(sample.name.removeprefix("headrace_"), *sample.labels.values()): sample.value for sample in samples}


def test_counters_follow_requests_through_scheduler_and_worker(fleet: Fleet) -> None:
    until(lambda: scrape(fleet, 1)[("worker_rows",)] == 0)  # what an earlier test has cancelled
    scheduler, worker = scrape(fleet, 0), scrape(fleet, 1)
    collector = Collector(
        fleet.broker, submit(fleet, "metered", [{"prompt": "Count:", "max_tokens": 5, "ignore_eos": True}] * 3)
    )
    collector.wait(60)

    def grown(before: Figures, number: int, *name: str) -> float:
        return scrape(fleet, number).get(name, 0) - before.get(name, 0)

    # A figure may follow what it counts: it is told by a process that has just seen it happen.
    until(lambda: grown(worker, 1, "worker_gone_requests_total", "length") == 3)
    until(lambda: grown(worker, 1, "worker_tokens_total") == 15)
    assert grown(worker, 1, "worker_claimed_requests_total") == 3
    assert grown(scheduler, 0, "scheduler_requests_total", "queued") == 3
    assert grown(scheduler, 0, "scheduler_dispatched_requests_total") == 3


def test_gauges_tell_what_runs_at_this_moment(fleet: Fleet) -> None:
    requests: list[dict[str, object]] = [{"prompt": "Count:", "max_tokens": 1500, "ignore_eos": True}]
    collector = Collector(fleet.broker, submit(fleet, "gauged", requests))
    collector.wait_started()
    worker = scrape(fleet, 1)
    assert worker[("worker_rows",)] == worker[("worker_computing_rows",)] == 1
    (beat, *_) = fleet.broker.living.workers(fleet.settings.lease_ms)
    assert 1500 < worker[("worker_kv_tokens_claimed",)] <= worker[("worker_kv_tokens",)] == beat.kv_tokens
    assert worker[("worker_engine_up",)] == 1
    assert worker[("worker_engines_total",)] >= 1
    scheduler = scrape(fleet, 0)
    assert scheduler[("scheduler_leads",)] == scheduler[("broker_up",)] == 1
    assert scheduler[("queue_workers",)] >= 1
    assert scheduler[("queue_schedulers",)] >= 1
    assert scheduler[("queue_requests", "running")] == 1
    assert scheduler[("queue_tokens", "running")] > 1500
    assert scheduler[("queue_oldest_wait_seconds", "normal")] == 0
    fleet.broker.client.xadd(fleet.broker.keys.prefix + "requests", {"cancel": "gauged-0"})
    collector.wait(60)
    until(lambda: scrape(fleet, 1)[("worker_rows",)] == 0)
    assert scrape(fleet, 0)[("queue_requests", "running")] == 0


def test_every_figure_is_documented_and_no_other(fleet: Fleet) -> None:
    Collector(fleet.broker, submit(fleet, "documented", [{"prompt": "Count:", "max_tokens": 1}])).wait(60)
    until(lambda: any("queue_batch_cost_ratio" in name for name in scrape(fleet, 0)))
    told = {f"headrace_{name[0]}" for number in (0, 1) for name in scrape(fleet, number)}
    text = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"`(headrace_\w+)`", text))
    # This fleet keeps no answers; what one tells that does is in tests/unit/scheduler/test_metrics.py.
    assert told == {name for name in documented if not name.startswith("headrace_queue_cache_")}
