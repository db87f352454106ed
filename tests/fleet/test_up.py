"""``headrace up`` as a user types it: it serves, it says what is wrong, and it leaves nothing behind."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer
from tests.fleet.traces import MARK, processes_with, short_folder, user_environ
from tests.waiting import until

from headrace.testing.servers import Server, free_port
from headrace.workers.embedded_broker import check_port
from headrace.workers.model_store.store import ModelFolder

Up = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """That of a user with nothing set; the mark finds every process of a test, whoever its parent is by then."""
    with short_folder() as folder:
        state = {"XDG_STATE_HOME": str(tmp_path / "state")}
        yield user_environ() | {MARK: str(tmp_path), "TMPDIR": str(folder)} | state


@pytest.fixture
def up(model: ModelFolder, environ: dict[str, str], tmp_path: Path) -> Iterator[Up]:
    """Starts ``headrace up`` with the arguments it is given; its log is in ``tmp_path / "err"``."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "headrace", "up", *arguments]
        with (tmp_path / "err").open("w") as err:
            started.append(
                subprocess.Popen(
                    command, env=environ | variables, stdout=subprocess.PIPE, stderr=err, text=True, cwd=tmp_path
                )
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _headrace(environ: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "headrace", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True).stdout


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_request_goes_through_and_ctrl_c_drains(up: Up, environ: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    process = up("--port", str(port), "--set", "max_context_tokens=2048")
    assert _first_line(process).startswith(f"ready: redis://127.0.0.1:{port}/0, queue smollm2-135m, workers: 1")
    hints = [_first_line(process) for _ in range(3)]
    assert [hint.split()[0] for hint in hints] == ["redis-cli", "headrace", "python"]

    ask = ("submit", "--port", str(port), "--temperature", "0")
    assert _headrace(environ, *ask, "The capital of France is", "--max-tokens", "1") == " Paris\n"
    [worker] = json.loads(_headrace(environ, "status", "--port", str(port), "--json"))["workers"]
    pids = {worker["details"][f"{part}_pid"] for part in ("worker", "courier", "engine")}
    assert pids < set(processes_with(tmp_path))

    _headrace(environ, *ask, "Once upon a time", "--max-tokens", "40", "--ignore-eos", "--id", "long", "--no-wait")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert processes_with(tmp_path) == []
    assert list(Path(environ["TMPDIR"]).iterdir()) == []
    check_port(port)


def test_jobs_of_rq_go_through_and_leave_nothing_behind(up: Up, tmp_path: Path) -> None:
    port = free_port()
    process = up("--port", str(port), "--rq-workers", "1", "--set", "max_context_tokens=2048")
    assert _first_line(process).startswith("ready: ")
    with Redis(port=port) as client:
        queue = Queue("headrace", connection=client, serializer=JSONSerializer)
        fields = {"max_tokens": 1, "temperature": 0}
        one = queue.enqueue("headrace.producer.jobs.generate", prompt="The capital of France is", **fields)
        prompts = ["The capital of France is", "The capital of Italy is"]
        many = queue.enqueue("headrace.producer.jobs.generate_many", prompts=prompts, **fields)
        for job in (one, many):
            job.latest_result(timeout=60)
        assert one.return_value() == " Paris"
        assert [found["text"] for found in many.return_value()] == [" Paris", " Rome"]  # type: ignore[union-attr]
        long = queue.enqueue("headrace.producer.jobs.generate", prompt="Once", max_tokens=1_500, ignore_eos=True)
        until(lambda: bool(long.get_meta().get("tokens")))
    assert len(processes_with(tmp_path)) >= 8  # up, broker, scheduler, worker, engine, courier, rq worker, its job
    process.kill()
    until(lambda: processes_with(tmp_path) == [])


def test_kill_9_of_up_leaves_no_process(up: Up, environ: dict[str, str], tmp_path: Path) -> None:
    process = up("--port", "0")
    assert _first_line(process).startswith("ready: ")
    assert len(processes_with(tmp_path)) >= 6  # up, broker, scheduler, worker, engine, courier
    process.kill()
    until(lambda: processes_with(tmp_path) == [])


def test_a_taken_port_is_said_at_once_with_status_2(up: Up, tmp_path: Path) -> None:
    with Server("valkey", port=free_port()) as server:
        assert up("--port", str(server.port)).wait(30) == 2
    said = (tmp_path / "err").read_text()
    assert said.startswith(f"headrace: port {server.port} is taken by another program")
    assert said.count("\n") == 1


def test_a_setting_that_no_worker_can_serve_ends_it_with_status_2(up: Up, tmp_path: Path) -> None:
    assert up("--port", "0", "--kv-tokens", "512").wait(60) == 2
    assert "headrace: kv_tokens 512 must hold max_context_tokens" in (tmp_path / "err").read_text()
    assert processes_with(tmp_path) == []


def test_a_password_is_in_no_process_list_and_in_no_log(up: Up, tmp_path: Path) -> None:
    port = free_port()
    with Server("valkey", port=port) as server, server.client() as client:
        client.config_set("requirepass", "hunter22")
        process = up(HEADRACE_REDIS_URL=f"redis://:hunter22@127.0.0.1:{port}/0", HEADRACE_LOG_LEVEL="debug")
        greeting = _first_line(process)
        lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_with(tmp_path)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert len(lines) >= 5
    assert greeting.startswith(f"ready: redis://:***@127.0.0.1:{port}/0")
    assert "hunter22" not in greeting + "".join(lines) + (tmp_path / "err").read_text()
