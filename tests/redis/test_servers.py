"""The helper that every other test of this folder stands on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from tests.conftest import fast_settings
from tests.waiting import until

from headrace.broker import Broker
from headrace.errors import BrokerUnavailableError
from headrace.testing.servers import Kind, MissingServerError, Server, free_port, program


def test_a_broker_connects_to_both_servers(broker: Broker) -> None:
    assert broker.now_ms() > 1_600_000_000_000
    assert broker.load() == {
        "queued": 0, "queued_tokens": 0, "running": 0, "running_tokens": 0, "ready": 0, "batches": 0, "dead": 0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_a_restart_reads_the_append_only_file_again(kind: Kind) -> None:
    with Server(kind, ["--appendonly", "yes", "--appendfsync", "always"]) as server:
        with server.client() as client:
            client.set("k", "v")
        server.kill()
        with pytest.raises(BrokerUnavailableError):
            Broker.connect(fast_settings(redis_url=server.url))
        server.start()
        with server.client() as client:
            assert client.get("k") == b"v"
    assert not server.folder.exists()


def test_a_paused_server_hangs_and_a_resumed_one_answers(redis_server: Server) -> None:
    redis_server.pause()
    try:
        client = redis.Redis.from_url(redis_server.url, socket_timeout=0.05, retry=None)
        with client, pytest.raises(redis.TimeoutError):
            client.ping()
    finally:
        redis_server.resume()
    with redis_server.client() as client:
        assert client.ping()


def test_a_missing_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingServerError, match="apt-get install redis-server"):
        program("redis")


def test_a_server_dies_with_the_process_that_started_it() -> None:
    code = (
        "import signal, sys; from headrace.testing.servers import Server; s = Server('redis').start();"
        "print(s.pid, s.folder, flush=True); signal.pause()"
    )
    root = str(Path(__file__).parents[2])
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environ) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        parent.send_signal(signal.SIGKILL)
    until(lambda: not _lives(int(pid)))
    assert Path(folder).exists()
    with Server("redis"):
        assert not Path(folder).exists(), "the next server sweeps up behind a maker that was killed"


def _lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_server_listens_on_a_port_if_it_is_told_to() -> None:
    with Server("valkey", port=free_port()) as server:
        assert server.url.startswith("redis://127.0.0.1:")
        assert Broker.connect(fast_settings(redis_url=server.url)).load()["queued"] == 0
