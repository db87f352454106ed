"""``headrace top``: one frame, and the loop in a terminal while the server goes away and comes back."""

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fcntl import ioctl
from typing import Self

import pytest
from tests.conftest import fast_settings
from tests.unit.cli.conftest import Headrace

from headrace.broker import Broker
from headrace.testing.servers import Server, free_port

WORKER = {"host": "here", "class": "cpu/abc/float32", "max_rows": 32, "kv_tokens": 4096, "num_rows": 5,
          "tokens_per_s": 43.25}  # fmt: skip


def log_batch(queue: Broker, predicted_ms: float, real_ms: float | None) -> None:
    cut = {"kind": "cut", "batch": f"{queue.now_ms()}-0", "class": "cpu/abc/float32", "rows": 4, "tokens": 400,
           "longest": 128, "ms": predicted_ms}  # fmt: skip
    queue.client.xadd(queue.keys.batch_log, cut)
    if real_ms is not None:
        ran = {"kind": "ran", "batch": cut["batch"], "class": "cpu/abc/float32", "worker": "w1", "rows": 4,
               "tokens": 350, "ms": real_ms}  # fmt: skip
        queue.client.xadd(queue.keys.batch_log, ran)


def test_once_prints_a_frame_with_lanes_batches_workers_and_schedulers(
    headrace: Headrace, queue: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    headrace("submit", "hello", "--no-wait", "--lane", "bulk")
    queue.leadership.take("s1", 60_000)
    for name in ("s1", "s2"):
        queue.living.beat("scheduler", name, {"host": "here"}, 6_000)
    queue.living.beat("worker", "w1", WORKER, 6_000)
    log_batch(queue, 12.5, 25.0)
    status, out, err = headrace("top", "--once")
    assert (status, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[1].startswith("43.2 tokens/s 1 queued (")
    assert "normal 0 0 -" in lines
    assert any(re.fullmatch(r"bulk 1 0 \d+ ms", line) for line in lines)
    assert any(
        re.fullmatch(r"\d+ ms ago 4 12\.5 ms 25\.0 ms \+100% 128 350/400 cpu/abc/float32", line) for line in lines
    )
    assert "scheduler s1; standing by: s2" in lines
    assert any(re.fullmatch(r"w1 5/32 43\.2 \d+ ms ago cpu/abc/float32", line) for line in lines)


def test_an_empty_queue_says_what_is_missing(headrace: Headrace, queue: Broker) -> None:
    status, out, _ = headrace("top", "--once")
    assert status == 0
    assert [line.strip() for line in out.splitlines() if line.startswith("no ")] == [
        "no batch yet", "no scheduler", "no worker",
    ]  # fmt: skip


@pytest.mark.parametrize("columns", [24, 40, 79])
def test_no_line_is_wider_than_a_narrow_terminal(
    headrace: Headrace, queue: Broker, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    queue.living.beat("worker", "a-worker-with-quite-a-long-name-1234", WORKER, 6_000)
    log_batch(queue, 12.5, None)
    out = headrace("top", "--once")[1]
    assert max(len(line) for line in out.splitlines()) <= columns
    assert "5/32" in out


def test_in_a_common_terminal_names_give_way_and_numbers_are_whole(
    headrace: Headrace, queue: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Previously a long class made every column narrower, until none could be read.
    monkeypatch.setenv("COLUMNS", "80")
    long = "a-very-long-device-name/0123456789abcdef/float32"
    queue.living.beat("worker", "host-123456-abcdef", WORKER | {"class": long}, 6_000)
    queue.client.xadd(
        queue.keys.batch_log,
        {"kind": "cut", "batch": f"{queue.now_ms()}-0", "class": long, "rows": 16, "tokens": 123456, "longest": 4096,
         "ms": 12345.6},
    )  # fmt: skip
    lines = headrace("top", "--once")[1].splitlines()
    assert max(len(line) for line in lines) <= 80
    (batch,) = [line for line in lines if "ago" in line and "12346 ms" in line]
    assert "-/123 456" in batch
    assert "a-very-lo" in batch
    (worker,) = [line for line in lines if "5/32" in line]
    assert worker.startswith("host-123456-abcdef")
    assert "a-very-long-device-name" in worker


def test_once_without_a_server_is_an_error(headrace: Headrace) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    status, out, err = headrace("top", "--once", "--redis-url", url)
    assert (status, out) == (1, "")
    assert err.startswith(f"headrace: no Redis server answers at {url}")


@dataclass
class Terminal:
    """A program in a terminal of its own; what it draws is kept as it comes."""

    command: list[str]
    environ: dict[str, str]
    lines: int
    columns: int
    seen: str = ""

    def __enter__(self) -> Self:
        self.fd, inner = pty.openpty()
        ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", self.lines, self.columns, 0, 0))
        # Whoever runs the tests may have been told of a terminal of its own.
        environ = {name: value for name, value in self.environ.items() if name not in ("LINES", "COLUMNS")}
        self.process = subprocess.Popen(
            self.command, env=environ, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
        )
        os.close(inner)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)

    def wait_for(self, text: str, timeout_s: float = 20) -> str:
        """Everything drawn until ``text`` is, without the terminal's commands; it begins behind what was seen."""
        drawn, give_up_s = b"", time.monotonic() + timeout_s
        while text not in (shown := re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode(errors="replace"))):
            assert time.monotonic() < give_up_s, f"{text!r} does not come: {shown[-2000:]}"
            if select.select([self.fd], [], [], 0.1)[0]:
                drawn += os.read(self.fd, 65536)
        return shown


@pytest.fixture
def own_server() -> Iterator[Server]:
    """On a port, to come back to."""
    with Server("valkey", port=free_port()) as server:
        yield server


def test_the_loop_outlives_its_server_and_ends_by_ctrl_c(own_server: Server) -> None:
    settings = fast_settings(redis_url=own_server.url)
    command = [sys.executable, "-P", "-m", "headrace", "top", "--interval-s", "0.1"]
    environ = settings.to_environ() | {"TERM": "xterm"}
    with Terminal(command, environ, lines=24, columns=100) as terminal:
        terminal.wait_for("no worker")
        own_server.stop()
        shown = terminal.wait_for("trying again")
        assert f"no Redis server answers at {own_server.url}" in shown
        own_server.start()
        with own_server.client() as client:
            client.hset("hr:{test}:worker:w1", "info", json.dumps(WORKER))
            client.zadd("hr:{test}:workers", {"w1": 1000 * int(time.time())})
        assert "trying again" not in terminal.wait_for("5/32").rpartition("tokens/s")[2]
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(10) == 0


def test_a_low_terminal_shows_the_busiest_workers_and_says_how_many_more(own_server: Server) -> None:
    settings = fast_settings(redis_url=own_server.url, lease_ms=30_000)  # the program may take seconds to start
    broker = Broker.connect(settings)
    for number in range(40):
        broker.living.beat("worker", f"w{number:02}", WORKER | {"num_rows": number % 32}, 60_000)
    broker.close()
    command = [sys.executable, "-P", "-m", "headrace", "top"]
    environ = settings.to_environ() | {"TERM": "xterm"}
    with Terminal(command, environ, lines=20, columns=100) as terminal:
        shown = terminal.wait_for(" more")
        assert "w31" in shown
        assert "w00" not in shown
        frame = shown[: shown.index(" more")]
        assert frame.count("\n") < 20
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(10) == 0
