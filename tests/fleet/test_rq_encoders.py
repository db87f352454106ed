"""Jobs on RQ that ask an encoder: answers in JSON, many texts in several requests, and a lost worker costs nothing."""

from array import array
from collections.abc import Iterator
from typing import cast

import pytest
from rq import Queue, Retry
from rq.serializers import JSONSerializer
from tests.conftest import fast_settings
from tests.fleet.rq_workers import RqBench, horse_of, kill
from tests.redis.encoder_fleet import EncoderFleet
from tests.unit.producer.stub_fleet import StubFleet
from tests.waiting import until

from headrace.broker import Broker
from headrace.testing.servers import Server
from headrace.testing.stub_encoder import vector_of

JOBS = "headrace.producer.jobs."


@pytest.fixture
def fleet(valkey_server: Server) -> Iterator[EncoderFleet]:
    settings = fast_settings(redis_url=valkey_server.url, rq_lease_ms=3_000, rq_progress_ms=50)
    with EncoderFleet(settings) as fleet:
        yield fleet


@pytest.fixture
def bench(fleet: EncoderFleet, valkey_server: Server) -> Iterator[RqBench]:
    with valkey_server.client() as client:
        queue = Queue("headrace", connection=client, serializer=JSONSerializer)
        broker = Broker.connect(fleet.settings)
        bench = RqBench(fleet.settings, broker, cast(StubFleet, fleet), queue)
        yield bench
        bench.close()
        broker.close()


def vector(*ids: int) -> list[float]:
    return array("f", vector_of(ids)).tolist()


def test_jobs_return_what_an_encoder_answers(bench: RqBench) -> None:
    one = bench.enqueue(JOBS + "embed", input="one x")
    many = bench.enqueue(JOBS + "embed", input=["x"] * 150 + ["two"])
    labels = bench.enqueue(JOBS + "classify", input=["x", "one"], top_k=1)
    masks = bench.enqueue(JOBS + "fill", input="x [MASK]", top_k=1)
    too_long = bench.enqueue(JOBS + "embed", input=["x"] * 149 + ["x " * 40])
    refused = bench.enqueue(JOBS + "rerank", query="x", documents=["one"], retry=Retry(2))
    bench.burst()
    assert bench.result(one) == vector(1, 4, 7, 2)
    assert bench.result(many) == [vector(1, 7, 2)] * 150 + [vector(1, 5, 2)]
    assert {name: bench.meta(many)[name] for name in ("state", "total", "done")} == {
        "state": "done", "total": 3, "done": 3,
    }  # fmt: skip
    assert [[label["label"] for label in text] for text in bench.result(labels)] == [["yes"], ["yes"]]
    assert bench.result(masks) == [{"position": 2, "candidates": [{"id": 0, "text": "<unk>", "score": 0.5}]}]
    assert bench.meta(too_long)["error"]["message"].startswith("input[149]: 42 tokens")
    assert refused.get_status(refresh=True).value == "failed"
    assert bench.meta(refused)["error"]["field"] == "task"


def test_a_job_whose_worker_was_killed_reads_what_was_asked_before(bench: RqBench, fleet: EncoderFleet) -> None:
    fleet.paused = True
    job = bench.enqueue(JOBS + "embed", input=["one"] * 70, retry=Retry(1))
    first = bench.start()
    until(lambda: bench.end_of(f"rq-{job.id}.1")[0] is not None)
    kill(horse_of(first))
    first.kill()
    bench.start()
    fleet.paused = False
    bench.until_status(job, "finished")
    assert bench.result(job) == [vector(1, 4, 2)] * 70
    assert sum(map(len, fleet.runner.batches)) == 70, "nothing was asked or computed twice"


def test_a_cancelled_job_cancels_its_requests(bench: RqBench, fleet: EncoderFleet) -> None:
    fleet.paused = True
    job = bench.enqueue(JOBS + "embed", input=["one"] * 70)
    bench.start()
    until(lambda: bench.end_of(f"rq-{job.id}.1")[0] is not None)
    job.cancel()
    for number in range(2):
        bench.until_cancelled(f"rq-{job.id}.{number}")
