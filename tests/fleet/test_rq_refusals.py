"""An rq worker runs what is on its list and nothing else, and goes on behind whatever was put into its queue."""

import json
import os
import pickle
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rq import Callback, Queue, Retry, Webhook
from rq.job import Job
from rq.serializers import JSONSerializer
from tests.conftest import fast_settings
from tests.fleet.rq_workers import GENERATE, GENERATE_MANY, RqBench, open_bench, text_for
from tests.redis.test_roles import SCHEDULER

from headrace.testing.servers import Server

MAX_BYTES = 10_000
#: As docs/design.md has it.
RQ_WORKER = SCHEDULER + (
    " ~rq:* &rq:pubsub:* +blmove +client|info +client|setname +exists +expire +hincrbyfloat +llen +lmove +lpush "
    "+lrange +lrem +rpush +sadd +scan +smembers +srem +subscribe +unsubscribe +unwatch +watch"
)


@pytest.fixture
def bench(valkey_server: Server) -> Iterator[RqBench]:
    settings = fast_settings(redis_url=valkey_server.url, rq_lease_ms=3_000, max_rq_job_bytes=MAX_BYTES)
    with open_bench(settings, valkey_server) as bench:
        yield bench


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def _touch(path: str) -> str:
    return f"touch {path}"


def _raw(client: Any, job_id: str, **fields: bytes) -> str:
    """Put a hash of one's own making into the queue."""
    common: dict[str, Any] = {"origin": b"headrace", "status": b"queued", "created_at": b"2026-01-01T00:00:00.000000Z"}
    client.hset(f"rq:job:{job_id}", mapping={**common, **fields})
    client.rpush("rq:queue:headrace", job_id)
    return job_id


def _data(*parts: Any) -> bytes:
    return zlib.compress(json.dumps(parts).encode())


def test_nothing_but_the_list_is_run_whatever_is_enqueued(bench: RqBench, tmp_path: Path) -> None:
    trap = str(tmp_path / "trap")
    client: Any = bench.queue.connection
    pickled = Queue("headrace", connection=client)
    fine: dict[str, Any] = {"kwargs": {"prompt": "hi", "max_tokens": 2}}
    good = json.dumps([GENERATE, None, [], {"prompt": "hi"}]).encode()
    bomb = zlib.compress(good + b" " * 50_000_000)
    assert len(bomb) < 100_000
    refused = {
        bench.enqueue("os.system", args=(_touch(trap),)).id: "'os.system' is not a job of this worker",
        bench.enqueue("headrace.producer.jobs.Client").id: "is not a job of this worker",
        bench.enqueue("tests.fleet.evil.run").id: "is not a job of this worker",
        pickled.enqueue("os.system", Trap(trap)).id: "the job's arguments are not JSON",
        pickled.enqueue(GENERATE, Trap(trap), meta={"x": Trap(trap)}).id: "the job's arguments are not JSON",
        _raw(client, "text-pickle", data=pickle.dumps(Trap(trap), protocol=0)): "the job's arguments are not JSON",
        _raw(client, "bound", data=_data("join", "x", [["a"]], {})): "'join' is not a job of this worker",
        _raw(client, "no-name", data=_data(["os.system"], None, [], {})): "is not a job of this worker",
        _raw(client, "no-arguments", data=_data(GENERATE, None, {}, [])): "not a list and an object",
        _raw(client, "list-meta", data=_data("os.system", None, [], {}), meta=b"[1]"): "is not a job of this worker",
        _raw(client, "bomb", data=bomb): f"or have more than {MAX_BYTES} bytes",
        bench.enqueue(GENERATE, **fine, on_success=Callback("os.system")).id: "callbacks are not run here",
        bench.enqueue(GENERATE, **fine, on_stopped=Callback("os.system")).id: "callbacks are not run here",
        bench.enqueue("os.system", args=(_touch(trap),), on_failure=Callback("os.abort")).id: "is not a job",
        bench.enqueue(
            GENERATE, **fine, webhooks=[Webhook("http://127.0.0.1:1/", "failed")]
        ).id: "webhooks are not sent",
    }
    _raw(client, "not-a-job", data=_data(GENERATE, None, [], {}), timeout=b"soon", result_ttl=b"x")
    _raw(client, "nothing", description=b"no data at all")
    last = bench.enqueue(GENERATE, prompt="hi", max_tokens=2)
    bench.burst()

    assert not Path(trap).exists()
    assert bench.result(last) == text_for(last, 2)
    assert bench.fleet.asked == [f"rq-{last.id}"]
    for job_id, message in refused.items():
        job = Job(job_id, connection=client, serializer=JSONSerializer)
        assert job.get_status() == "failed", message
        result = job.latest_result()
        assert result is not None
        assert "RefusedJobError" in str(result.exc_string)
        assert message in str(result.exc_string)
    assert "hi" not in bench.log.split()  # prompts are nobody's business


def test_names_that_can_be_no_job_are_passed_over_wherever_they_stand(bench: RqBench) -> None:
    # Previously each ended a worker, and one with a hash every worker for ever, in front of RQ's look for lost jobs.
    client: Any = bench.queue.connection
    lost = bench.enqueue(GENERATE, prompt="lost", max_tokens=2, retry=Retry(1))
    client.lrem("rq:queue:headrace", 0, lost.id)
    client.hset(lost.key, "status", "started")
    client.zadd("rq:wip:headrace", {f"{lost.id}:{'0' * 32}": 1, "a:b:c": 1, b"\xff": 1})
    due = bench.enqueue(GENERATE, prompt="due", max_tokens=2)
    client.lrem("rq:queue:headrace", 0, due.id)
    _raw(client, "sp ace", data=_data(GENERATE, None, [], {"prompt": "hi"}))
    _raw(client, "spoilt", data=_data(GENERATE, None, [], {"prompt": "hi"}), timeout=b"soon")
    client.set("rq:job:text", "no hash")
    odd: list[Any] = ["sp ace", "spoilt", "text", "a:b", b"\xff\xfe", ""]
    client.rpush("rq:queue:headrace", *odd)
    client.rpush(bench.queue.intermediate_queue.key, *odd)
    client.zadd("rq:ready:headrace", {name: 1 for name in odd})
    client.zadd("rq:canceled:headrace", {name: time.time() for name in odd})
    client.zadd("rq:scheduled:headrace", {due.id: 1} | {name: 1 for name in odd})
    last = bench.enqueue(GENERATE, prompt="hi", max_tokens=2)
    bench.burst()
    for job in (lost, due, last):
        assert bench.result(job) == text_for(job, 2), bench.log
    for job_id in client.lrange(bench.queue.intermediate_queue.key, 0, -1):
        assert job_id in (b"spoilt", b"text")  # names they might be, and the next look finds that nothing is behind
    assert [client.zcard(f"rq:{name}:headrace") for name in ("wip", "ready", "scheduled")] == [0, 0, 0]


def test_a_key_that_is_not_rqs_keeps_nobody_from_carrying_out_jobs(bench: RqBench) -> None:
    client: Any = bench.queue.connection
    client.set("rq:scheduled:headrace", "no set")
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=2)
    bench.burst()
    assert bench.result(job) == text_for(job, 2)
    assert "refuses a command: WRONGTYPE" in bench.log


def test_a_list_can_be_shortened(bench: RqBench) -> None:
    allowed, refused = bench.enqueue("headrace.producer.jobs.take_stock"), bench.enqueue(GENERATE, prompt="hi")
    status = bench.start("--burst", HEADRACE_RQ_JOBS='["take_stock"]').wait(30)
    assert status == 0
    assert bench.result(allowed)["is_sound"] is True
    assert "it carries out headrace.producer.jobs.take_stock\n" in str(refused.latest_result().exc_string)  # type: ignore[union-attr]


def test_a_lost_job_with_callbacks_has_none_of_them_run(bench: RqBench, tmp_path: Path) -> None:
    job = bench.enqueue(GENERATE, prompt="hi", on_failure=Callback("tests.fleet.test_rq_refusals.nothing"))
    client: Any = bench.queue.connection
    client.lrem("rq:queue:headrace", 0, job.id)
    client.hset(job.key, "status", "started")
    client.zadd("rq:wip:headrace", {f"{job.id}:{'0' * 32}": 1})
    bench.burst()
    assert job.get_status() == "failed"
    assert "callback for job" not in bench.log
    assert "nothing" not in bench.log


def test_the_rights_of_its_role_suffice_for_all_that_a_worker_does(bench: RqBench, valkey_server: Server) -> None:
    client: Any = bench.queue.connection
    client.execute_command("ACL", "SETUSER", "rq-worker", "reset", "on", ">pw", *RQ_WORKER.split())
    client.execute_command("ACL", "LOG", "RESET")
    as_role = {"HEADRACE_REDIS_URL": valkey_server.url.replace("unix://", "unix://rq-worker:pw@")}
    try:
        module = "headrace.producer.jobs"
        bench.fleet.until_token = 4
        jobs = [
            bench.enqueue(GENERATE_MANY, prompts=["too long"]),
            bench.enqueue(f"{module}.take_stock"),
            bench.enqueue(f"{module}.replay_dead", all=True),
        ]
        in_vain = bench.enqueue(f"{module}.replay_dead", ids=["x"], retry=Retry(1, interval=1))
        held = bench.enqueue(GENERATE, prompt="hi", max_tokens=6)
        worker = bench.start(**as_role)
        bench.until_meta(held, lambda meta: meta.get("tokens") == 4)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
        bench.fleet.until_token = 1 << 30
        assert bench.start("--burst", **as_role).wait(30) == 0
        assert [job.get_status().value for job in (*jobs, held)] == ["finished"] * 4
        assert in_vain.get_status().value in ("scheduled", "failed")
        # redis-py says its name where it may, and does without.
        assert {entry["object"] for entry in client.acl_log()} <= {"client|setinfo"}
    finally:
        client.execute_command("ACL", "DELUSER", "rq-worker")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0"], "--processes 0: must be at least 1"),
        (["--burst", "--processes", "2"], "--burst: one process empties a queue"),
        (["--set", "rq_lease_ms=10"], "rq_lease_ms: Input should be greater than or equal to 3000"),
        (["--set", "rq_jobs=[\"os.system\"]"], "rq_jobs"),
        (["--redis-url", "redis://127.0.0.1:1/0"], "no Redis server answers at redis://127.0.0.1:1/0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_the_start(bench: RqBench, arguments: list[str], message: str) -> None:
    assert bench.start(*arguments).wait(60) in (1, 2)
    assert message in bench.log
