"""docker-compose.yml: compose takes it, and what it starts serves, says how it fares, and ends in its time."""

import json
import re
import signal
from typing import Any

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer
from tests.fleet.compose import ROOT, Stack, resolved, seconds
from tests.fleet.traces import short_folder
from tests.waiting import until

from headrace.config import Settings
from headrace.testing.servers import free_port
from headrace.workers.model_store.store import ModelFolder, default_cache_dir

#: Services of ours that run for ever, on a machine without a GPU.
SERVING = ("scheduler", "worker", "rq-worker")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """As Debian's docker-compose understands them. It has to be there: scripts/test installs it."""
    return resolved()


def test_the_environment_is_made_of_settings_with_their_own_defaults(services: dict[str, Any]) -> None:
    environment = services["worker"]["environment"]
    assert {services[name]["environment"]["HEADRACE_REDIS_URL"] for name in (*SERVING, "models")} == {
        "redis://broker:6379/0"
    }
    names = {name.removeprefix("HEADRACE_").lower() for name in environment}
    assert names <= Settings.model_fields.keys()
    given = {name: environment[f"HEADRACE_{name.upper()}"] for name in names}
    default = Settings.model_construct()
    different = {name for name in names if getattr(Settings.load(**given), name) != getattr(default, name)}
    assert different == {"redis_url", "cache_dir", "metrics_host"}


def test_the_example_of_an_environment_names_each_variable_with_the_files_default() -> None:
    used = set(re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text()))
    example = re.findall(r"^(\w+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert sorted(used) == sorted(example)


def test_no_service_is_root_or_writes_to_its_image_or_may_gain_privileges(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["tmpfs"] == ["/tmp"], name
        assert service["init"] is True, name
        assert service.get("user") == ("valkey" if name == "broker" else None), name  # ours: the image's own


def test_workers_can_be_scaled_and_drain_before_they_are_killed(services: dict[str, Any]) -> None:
    for name in ("scheduler", "worker", "worker-gpu", "rq-worker"):
        assert not services[name].keys() & {"ports", "container_name", "hostname"}, "two of them would collide"
    for name in ("worker", "worker-gpu"):
        service = services[name]
        environment = service["environment"]
        needed_ms = int(environment["HEADRACE_DRAIN_MS"]) + int(environment["HEADRACE_LEASE_MS"])
        assert seconds(service["stop_grace_period"]) > needed_ms / 1000 + 10


def test_the_worker_on_a_gpu_starts_only_when_asked_for_and_reserves_one(services: dict[str, Any]) -> None:
    service = services["worker-gpu"]
    assert service["profiles"] == ["gpu"]
    assert service["environment"]["HEADRACE_DEVICE"] == "cuda"
    assert service["build"]["target"] == "cuda"
    assert service["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    ]
    assert [name for name, other in services.items() if "profiles" in other] == ["worker-gpu"]


def test_what_the_broker_accepts_is_published_on_the_loopback_alone(services: dict[str, Any]) -> None:
    assert services["broker"]["ports"] == ["127.0.0.1:6380:6379/tcp"]
    assert [name for name, service in services.items() if "ports" in service] == ["broker"]


def test_a_request_goes_through_the_services_and_their_health_checks_tell_how_they_fare(
    model: ModelFolder,
) -> None:
    services = resolved(HEADRACE_LEASE_MS="2000", HEADRACE_DRAIN_MS="5000", HEADRACE_MAX_CONTEXT_TOKENS="2048")
    with short_folder() as folder, Stack(services, folder, default_cache_dir(), free_port()) as stack:
        assert not stack.is_healthy("broker")
        stack.start("broker")
        until(lambda: stack.is_healthy("broker"))
        assert stack.start("models").wait(60) == 0
        assert not any(stack.is_healthy(name) for name in SERVING)
        for name in SERVING:
            stack.start(name)
        for name in SERVING:
            until(lambda name=name: stack.is_healthy(name), 90)  # type: ignore[misc]

        assert _plain_answer(stack).startswith(" Paris")
        ask = ("headrace", "submit", "--temperature", "0", "--max-tokens", "1", "The capital of France is")
        asked = stack.run("worker", *ask)
        assert (asked.returncode, asked.stdout, asked.stderr) == (0, " Paris\n", "")

        assert _answer_by_rq(stack) == " Paris"

        stack.send("scheduler", signal.SIGSTOP)  # it hangs
        until(lambda: not stack.is_healthy("scheduler"))
        stack.send("scheduler", signal.SIGCONT)
        until(lambda: stack.is_healthy("scheduler"))

        for name in reversed(SERVING):
            assert stack.stop(name) == 0, stack.log(name)
            assert not stack.is_healthy(name)
        assert stack.stop("broker") == 0
        assert not stack.is_healthy("broker")
        assert "draining" in stack.log("worker")
        assert list((folder / "data").glob("appendonlydir/*.aof")), "the broker keeps no append-only file"


def _answer_by_rq(stack: Stack) -> object:
    """Ask as any RQ user may."""
    with redis.Redis(port=stack.port) as client:
        queue = Queue("headrace", connection=client, serializer=JSONSerializer)
        prompt = "The capital of France is"
        job = queue.enqueue("headrace.producer.jobs.generate", prompt=prompt, max_tokens=1, temperature=0)
        assert job.latest_result(timeout=30) is not None, stack.log("rq-worker")
        return job.return_value()


def _plain_answer(stack: Stack) -> str:
    """Ask as any Redis client may, and read the stream to its end."""
    prefix = "hr:{smollm2-135m}:"
    text, position, done = "", "0", None
    with redis.Redis(port=stack.port, decode_responses=True, protocol=2) as client:
        body = {"id": "a1", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
        client.xadd(prefix + "requests", {"json": json.dumps(body)})
        while done is None:
            reply: Any = client.xread({prefix + "out:a1": position}, block=30_000)
            assert reply, "no token came"
            position = reply[0][1][-1][0]
            for _, fields in reply[0][1]:
                chunk = json.loads(fields["json"])
                text, done = text + chunk["text"], chunk.get("done")
    assert done["reason"] == "length"
    return text
