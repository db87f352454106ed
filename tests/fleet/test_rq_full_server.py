"""RQ workers beside a server whose memory is full: they wait for room as everybody does, and go on."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import fast_settings
from tests.fleet.rq_workers import GENERATE, HELD, RqBench, open_bench, text_for
from tests.waiting import LIMIT_S, until

from headrace.testing.servers import Server


@pytest.fixture
def bench(valkey_server: Server) -> Iterator[RqBench]:
    settings = fast_settings(redis_url=valkey_server.url, rq_lease_ms=3_000, rq_progress_ms=50)
    with open_bench(settings, valkey_server) as bench:
        yield bench
        _set_memory(bench, 0)


def _set_memory(bench: RqBench, num_bytes: int) -> None:
    client: Any = bench.queue.connection
    client.config_set("maxmemory", num_bytes)


def test_a_worker_without_a_job_waits_for_room_or_for_its_end(bench: RqBench) -> None:
    # Previously it ended, and was started again and again.
    _set_memory(bench, 1)
    waits, ends = bench.start(), bench.start()
    until(lambda: bench.log.count("the server's memory is full; waiting") == 2)
    _set_memory(bench, 0)
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=2)
    bench.until_status(job, "finished")
    _set_memory(bench, 1)
    time.sleep(1.5)  # more than the pause between two looks at lost jobs: both wait again
    ends.send_signal(signal.SIGTERM)
    assert ends.wait(LIMIT_S) == 0
    _set_memory(bench, 0)
    again = bench.enqueue(GENERATE, prompt="hi again", max_tokens=2)
    bench.until_status(again, "finished")
    assert waits.poll() is None
    assert "Traceback" not in bench.log


def test_a_worker_that_is_asked_to_stop_before_it_could_begin_ends_in_order(bench: RqBench) -> None:
    _set_memory(bench, 1)
    worker = bench.start()
    until(lambda: "the server's memory is full; waiting" in bench.log)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(LIMIT_S) == 0
    assert "Traceback" not in bench.log


def test_a_job_that_outlasts_its_lease_while_nothing_can_be_written_is_not_lost(bench: RqBench) -> None:
    bench.fleet.until_token = HELD
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=9)  # without a retry: lost once, and it has failed
    bench.start()
    bench.until_meta(job, lambda meta: meta.get("tokens") == HELD)
    bench.start()
    _set_memory(bench, 1)
    bench.fleet.until_token = 1 << 30
    time.sleep(5)  # more than a lease
    _set_memory(bench, 0)
    bench.until_status(job, "finished")
    assert bench.result(job) == text_for(job, 9)
    assert [result.type.name for result in job.results()] == ["SUCCESSFUL"]
    assert bench.fleet.asked == [f"rq-{job.id}"]
