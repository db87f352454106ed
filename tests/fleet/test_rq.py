"""Jobs on RQ: anybody enqueues, and reads on the job how far it is and what came of it."""

import signal
import subprocess
import sys

from rq import Retry
from rq.command import send_stop_job_command
from rq.serializers import JSONSerializer
from tests.fleet.rq_workers import GENERATE, GENERATE_MANY, HELD, RqBench, kill, text_for
from tests.unit.producer.stub_fleet import text_of
from tests.waiting import LIMIT_S

from headrace.job import Job, SamplingParams
from headrace.producer.bulk.names import seed_of
from headrace.testing.servers import Server

_PLAIN_USER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("headrace", "torch", "pycuda", "msgpack", "pydantic"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer
queue = Queue("headrace", connection=Redis(unix_socket_path=sys.argv[1]), serializer=JSONSerializer)
job = queue.enqueue("headrace.producer.jobs.generate", prompt="hello", max_tokens=6, seed=5)
job.latest_result(timeout=30)
print(job.return_value(), job.get_meta()["state"], job.get_meta()["tokens"], sep="|")
"""


def test_whoever_has_only_rq_and_redis_enqueues_and_reads_the_text(bench: RqBench, valkey_server: Server) -> None:
    worker = bench.start()
    command = [sys.executable, "-P", "-c", _PLAIN_USER, valkey_server.url.removeprefix("unix://")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said == f"{text_of(5, 6)}|done|6\n"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(LIMIT_S) == 0


def test_the_jobs_can_be_imported_without_torch_and_pycuda() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, pycuda=None); import headrace.producer.jobs as jobs; jobs.generate"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)


def test_meta_tells_how_far_a_job_is_while_it_streams(bench: RqBench) -> None:
    bench.fleet.until_token = HELD
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=9, meta={"mine": 1})
    bench.start()
    bench.until_meta(job, lambda meta: meta.get("tokens") == HELD)
    assert bench.meta(job) == {
        "mine": 1, "state": "running", "request_id": f"rq-{job.id}", "tokens": HELD, "text": text_for(job, HELD),
    }  # fmt: skip
    bench.fleet.until_token = 1 << 30
    bench.until_status(job, "finished")
    usage = {"prompt_tokens": 3, "completion_tokens": 9}
    end = {"state": "done", "tokens": 9, "text": text_for(job, 9), "reason": "length", "usage": usage}
    assert bench.meta(job) == {"mine": 1, "request_id": f"rq-{job.id}", **end}
    assert bench.result(job) == text_for(job, 9)


def test_several_results_come_as_a_list(bench: RqBench) -> None:
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=3, n=2, seed=1)
    bench.burst()
    assert bench.result(job) == [text_of(1, 3), text_of(2, 3)]


def test_what_would_fail_alike_is_not_tried_again(bench: RqBench) -> None:
    job = bench.enqueue(GENERATE, prompt="too long", retry=Retry(2))
    bench.burst()
    assert job.get_status() == "failed"
    assert bench.meta(job)["error"]["field"] == "prompt"
    assert "InvalidRequestError: prompt: has 9 tokens" in str(job.latest_result().exc_string)  # type: ignore[union-attr]
    assert bench.fleet.asked == [f"rq-{job.id}"]
    assert f"job {job.id} failed: InvalidRequestError: prompt: has 9 tokens" in bench.log
    assert "Traceback" not in bench.log


def test_a_job_that_asks_for_what_cannot_be_has_failed_before_anything_was_asked(bench: RqBench) -> None:
    module = "headrace.producer.jobs"
    refused = {
        bench.enqueue(GENERATE, prompt=5, meta={"mine": 1}): "prompt: ",
        # Previously "input: Field required", of a function that takes a prompt.
        bench.enqueue(GENERATE, prompt="hi", task="embed", meta={"mine": 1}): "enqueue headrace.producer.jobs.embed",
        bench.enqueue(f"{module}.embed", input="hi", task="rerank", meta={"mine": 1}): "a job's name says what it does",
        # Previously "no worker lives", and the classes of those that do.
        bench.enqueue(f"{module}.measure_costs", worker_class=None, meta={"mine": 1}): "worker_class: must be the name",
    }
    bench.burst()
    for job, message in refused.items():
        assert (job.get_status(), bench.meta(job)) == ("failed", {"mine": 1, "state": "failed"})
        assert message in str(job.latest_result().exc_string)  # type: ignore[union-attr]
    assert bench.fleet.asked == []


def test_a_job_that_is_put_back_after_it_was_stopped_asks_anew(bench: RqBench) -> None:
    bench.fleet.until_token = HELD
    job = bench.enqueue(GENERATE, prompt="hi", max_tokens=6)
    bench.start()
    bench.until_meta(job, lambda meta: meta.get("tokens") == HELD)
    send_stop_job_command(bench.queue.connection, job.id, serializer=JSONSerializer)
    bench.until_status(job, "stopped")
    assert bench.end_of(f"rq-{job.id}") == ("done", "cancelled")
    bench.fleet.until_token = 1 << 30
    job.requeue()
    bench.until_status(job, "finished")
    assert bench.result(job) == text_of(seed_of(f"rq-{job.id}.r1"), 6)
    assert bench.meta(job)["request_id"] == f"rq-{job.id}.r1"


def test_many_prompts_give_results_in_order_and_errors_one_by_one(bench: RqBench) -> None:
    messages, unserved = [{"role": "user", "content": "x"}], {"prompt": "x", "tenant": "nobody"}
    prompts = ["a", "too long", [1, 2, 3], {"messages": messages, "seed": 7}, {"n": 2}, "", unserved]
    job = bench.enqueue(GENERATE_MANY, prompts=prompts, max_tokens=3)
    bench.burst()
    found = bench.result(job)
    good = [found[index]["text"] for index in (0, 2, 3)]
    assert good == [text_of(seed_of(f"rq-{job.id}.0"), 3), text_of(seed_of(f"rq-{job.id}.2"), 3), text_of(7, 3)]
    assert [found[index]["error"]["field"] for index in (1, 4, 5, 6)] == ["prompt", "n", "prompt", "tenant"]
    assert [result["reason"] for result in found] == ["length", "error", "length", "length", "error", "error", "error"]
    meta = bench.meta(job)
    assert (meta["state"], meta["total"], meta["done"], meta["failed"], meta["tokens"]) == ("done", 7, 3, 4, 9)


def test_many_prompts_survive_their_worker_and_none_is_asked_twice(bench: RqBench) -> None:
    job = bench.enqueue(GENERATE_MANY, prompts=[f"{number}" for number in range(40)], max_tokens=30, retry=Retry(1))
    first = bench.start()
    bench.until_meta(job, lambda meta: meta.get("done", 0) >= 3)
    kill(first.pid)
    done_at_kill = bench.meta(job)["done"]
    assert done_at_kill < 40
    bench.start()
    bench.until_status(job, "finished")
    texts = [result["text"] for result in bench.result(job)]
    assert texts == [text_of(seed_of(f"rq-{job.id}.{number}"), 30) for number in range(40)]
    assert sorted(bench.fleet.asked) == sorted({f"rq-{job.id}.{number}" for number in range(40)})


def test_a_retry_with_a_pause_comes_without_rqs_own_scheduler(bench: RqBench) -> None:
    retry = Retry(1, interval=3)
    job = bench.enqueue("headrace.producer.jobs.replay_dead", ids=["not-there"], retry=retry)
    bench.start()
    bench.until_status(job, "scheduled")
    bench.until_status(job, "failed")
    assert "not in dead: not-there" in str(job.latest_result().exc_string)  # type: ignore[union-attr]


def test_control_jobs_do_what_the_command_line_does(bench: RqBench) -> None:
    broker = bench.broker
    params = SamplingParams(
        max_tokens=3, min_tokens=0, temperature=1, top_k=0, top_p=1, min_p=0, seed=1, stop=(), stop_token_ids=(),
        ignore_eos=False, repetition_penalty=1, presence_penalty=0, frequency_penalty=0, logit_bias=(), bad_words=(),
        logprobs=None,
    )  # fmt: skip
    body = Job((1, 2), params, "rev").encode()
    for request_id, job in (("a", body), ("b", b"")):
        broker.client.xadd(broker.keys.dead, {"v": 1, "id": request_id, "why": "lost 3 workers", "job": job})
    broker.client.zadd(broker.keys.classes, {"cpu/test": broker.now_ms() + 60_000, "gpu/old": 1})
    module = "headrace.producer.jobs"
    replayed = bench.enqueue(f"{module}.replay_dead", all=True)
    unclear = [bench.enqueue(f"{module}.replay_dead", **given) for given in ({}, {"ids": [1]}, {"ids": 5})]
    measured = bench.enqueue(f"{module}.measure_costs")
    in_vain = bench.enqueue(f"{module}.measure_costs", worker_class="gpu/old")
    stock = bench.enqueue(f"{module}.take_stock")
    bench.burst()
    found = bench.result(replayed)
    assert found["replayed"] == [{"id": "a", "replayed_as": "a.r1"}]
    assert [failed["id"] for failed in found["failed"]] == ["b"]
    assert "not a job of this version" in found["failed"][0]["error"]
    for refused in unclear:
        assert "give a list of dead requests, or all=True" in str(refused.latest_result().exc_string)  # type: ignore[union-attr]
    assert bench.result(measured) == {"asked": ["cpu/test"]}
    assert list(broker.client.hgetall(broker.keys.measure)) == [b"*"]
    assert "no worker of class 'gpu/old' lives" in str(in_vain.latest_result().exc_string)  # type: ignore[union-attr]
    assert (bench.result(stock)["dead"], bench.result(stock)["is_sound"]) == (1, True)


def test_several_processes_work_side_by_side_and_leave_nothing(bench: RqBench) -> None:
    bench.fleet.until_token = HELD
    jobs = [bench.enqueue(GENERATE, prompt="hi", max_tokens=9) for _ in range(2)]
    parent = bench.start("--processes", "2")
    for job in jobs:
        bench.until_meta(job, lambda meta: meta.get("tokens") == HELD)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(LIMIT_S) == 0
    assert sorted(bench.queue.job_ids) == sorted(job.id for job in jobs)
    assert bench.queue.connection.keys("rq:workers*") == []
