"""Workers of RQ's jobs are killed and stopped, and jobs cancelled: others go on, and no request stays behind."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rq import Retry
from rq.command import send_stop_job_command
from rq.serializers import JSONSerializer
from tests.fleet.rq_workers import GENERATE, GENERATE_MANY, HELD, RqBench, horse_of, kill, text_for
from tests.waiting import LIMIT_S, until


@pytest.mark.parametrize("end", ["kill -9", "kill -9 of the job's process", "SIGTERM"])
def test_another_worker_goes_on_with_the_same_request(bench: RqBench, end: str) -> None:
    bench.fleet.until_token = HELD
    # SIGTERM hands the job back without a retry; a lost worker's job is tried again only where that was asked for.
    retry = None if end == "SIGTERM" else Retry(1)
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=9, retry=retry)
    first = bench.start()
    bench.until_meta(job, lambda meta: meta.get("tokens") == HELD)
    horse = horse_of(first)
    if end == "SIGTERM":
        first.send_signal(signal.SIGTERM)
        assert first.wait(LIMIT_S) == 0, bench.log
        assert job.get_status() == "queued"
    else:
        kill(horse if "process" in end else first.pid)
    until(lambda: not Path(f"/proc/{horse}").exists())
    assert bench.end_of(f"rq-{job.id}") == ("running", None)
    bench.fleet.until_token = 1 << 30
    if "process" not in end:
        bench.start()
    bench.until_status(job, "finished")
    assert bench.result(job) == text_for(job, 9)
    assert bench.fleet.asked == [f"rq-{job.id}"]
    assert not any(bench.broker.load().values())


@pytest.mark.parametrize("how", ["cancel", "delete", "stop", "timeout"])
def test_a_job_that_is_not_wanted_any_more_has_its_request_cancelled(bench: RqBench, how: str) -> None:
    bench.fleet.until_token = HELD
    retry = Retry(3) if how != "timeout" else None
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=9, retry=retry, job_timeout=6 if how == "timeout" else 60)
    worker = bench.start()
    bench.until_meta(job, lambda meta: meta.get("tokens") == HELD)
    if how == "cancel":
        job.cancel()
    elif how == "delete":
        job.delete()
    elif how == "stop":
        send_stop_job_command(bench.queue.connection, job.id, serializer=JSONSerializer)
    bench.until_cancelled(f"rq-{job.id}")
    until(lambda: not bench.queue.started_job_registry.get_job_ids(cleanup=False))
    if how == "delete":
        until(lambda: "is gone" in bench.log)
        assert not bench.queue.connection.exists(job.key)
    else:
        status = {"cancel": "canceled", "stop": "stopped", "timeout": "failed"}[how]
        bench.until_status(job, status)
        bench.until_meta(job, lambda meta: meta["state"] == "cancelled")
    assert bench.queue.job_ids == []  # nor is it tried again
    after = bench.enqueue(GENERATE, prompt="the worker lives", max_tokens=2)
    bench.until_status(after, "finished")
    assert worker.poll() is None
    assert not any(bench.broker.load().values())


def test_a_job_that_is_cancelled_while_no_worker_has_it_has_its_request_cancelled(bench: RqBench) -> None:
    bench.fleet.until_token = HELD
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=9)
    first = bench.start()
    bench.until_meta(job, lambda meta: meta.get("tokens") == HELD)
    first.send_signal(signal.SIGTERM)
    assert first.wait(LIMIT_S) == 0
    job.cancel()
    bench.start()
    bench.until_cancelled(f"rq-{job.id}")
    bench.until_meta(job, lambda meta: meta["state"] == "cancelled")
    assert job.get_status() == "canceled"


def test_a_lost_job_is_found_though_a_worker_was_lost_while_it_looked_for_others(bench: RqBench) -> None:
    # Previously RQ's lock, which a killed worker leaves, kept every other from looking for a quarter of an hour.
    bench.fleet.until_token = HELD
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=6, retry=Retry(1))
    first = bench.start()
    bench.until_meta(job, lambda meta: meta.get("tokens") == HELD)
    kill(first.pid)
    client: Any = bench.queue.connection
    client.set(bench.queue.registry_cleaning_key, 1, ex=899)
    bench.fleet.until_token = 1 << 30
    bench.start()
    bench.until_status(job, "finished")
    assert bench.fleet.asked == [f"rq-{job.id}"]


def test_a_lost_job_that_is_not_tried_again_has_its_request_cancelled(bench: RqBench) -> None:
    bench.fleet.until_token = HELD
    job = bench.enqueue(GENERATE_MANY, prompts=["a", "b", "c"], max_tokens=9)
    first = bench.start()
    bench.until_meta(job, lambda meta: meta.get("tokens") == 2 * HELD)
    kill(first.pid)
    bench.start()
    bench.until_status(job, "failed")
    for index in range(2):
        bench.until_cancelled(f"rq-{job.id}.{index}")
    assert bench.broker.request_fields(f"rq-{job.id}.2") == {}
    assert bench.meta(job)["state"] == "failed"


def test_a_job_whose_process_was_killed_tells_that_it_failed_and_how_far_it_was(bench: RqBench) -> None:
    bench.fleet.until_token = HELD
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=9)
    worker = bench.start()
    bench.until_meta(job, lambda meta: meta.get("tokens") == HELD)
    kill(horse_of(worker))
    bench.until_status(job, "failed")
    assert bench.end_of(f"rq-{job.id}") == ("done", "cancelled")
    assert (bench.meta(job)["state"], bench.meta(job)["tokens"]) == ("failed", HELD)


@pytest.mark.parametrize("then", ["is told to end", "goes on", "finds its time over"])
def test_a_worker_that_comes_back_leaves_its_job_to_whoever_has_taken_it(bench: RqBench, then: str) -> None:
    # Previously it put the job into its queue a second time, and kept a second result.
    bench.fleet.until_token = HELD
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=9, retry=Retry(1), job_timeout=7 if "time" in then else 60)
    first = bench.start()
    bench.until_meta(job, lambda meta: meta.get("tokens") == HELD)
    name = bench.worker_of(job)
    processes = [first.pid, horse_of(first)]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    stopped_s = time.monotonic()
    client: Any = bench.queue.connection
    client.hset(job.key, "timeout", 60)  # for whoever takes it next
    second = bench.start()
    until(lambda: bench.worker_of(job) not in ("", name))
    if then == "is told to end":
        first.send_signal(signal.SIGTERM)
    elif then == "goes on":
        bench.fleet.until_token = 1 << 30
    else:
        time.sleep(max(0.0, stopped_s + 7.5 - time.monotonic()))
    for pid in processes:
        with suppress(ProcessLookupError):  # the worker may have ended its child meanwhile
            os.kill(pid, signal.SIGCONT)
    until(lambda: f"job {job.id} was lost" in bench.log)
    if then == "is told to end":
        assert first.wait(LIMIT_S) == 0
    if then != "goes on":
        assert (job.get_status(), bench.queue.job_ids, bench.end_of(f"rq-{job.id}")) == (
            "started",
            [],
            ("running", None),
        )
        assert bench.meta(job)["state"] == "running"
    bench.fleet.until_token = 1 << 30
    bench.until_status(job, "finished")
    second.send_signal(signal.SIGTERM)
    assert second.wait(LIMIT_S) == 0
    assert [result.type.name for result in job.results()] == ["SUCCESSFUL"]
    assert bench.result(job) == text_for(job, 9)
    assert bench.fleet.asked == [f"rq-{job.id}"]
