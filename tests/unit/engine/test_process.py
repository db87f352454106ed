import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
import torch

from headrace.errors import CONFIGURATION_STATUS
from headrace.job import SamplingParams
from headrace.workers.channel import Add, Costs, Decoder, Drop, Measure, Message, Ready, Tokens, encode
from headrace.workers.costs.table import CostTable
from headrace.workers.engine.device_name import device_name
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.settings import ENVIRONMENT_VARIABLE, EngineSettings

Params = Callable[..., SamplingParams]
COMMAND = [sys.executable, "-m", "headrace.workers.engine.process"]
START_LIMIT_S = 60.0
WORKER_CLASS = f"{device_name(torch.device('cpu'), 1)}/rev-7/float32"


class Courier:
    """The other end of the socket, as a test plays it."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(START_LIMIT_S)
        limit_s = time.monotonic() + START_LIMIT_S
        while True:
            try:
                self.socket.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < limit_s
                time.sleep(0.02)
        self.decoder = Decoder()
        self.inbox: list[Message] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *messages: Message) -> None:
        self.socket.sendall(b"".join(encode(message) for message in messages))

    def hello(self) -> Message:
        """What the engine is; its costs come next."""
        ready, costs = self.next(), self.next()
        assert isinstance(costs, Costs)
        CostTable.decode(costs.table)
        return ready

    def next(self) -> Message:
        while not self.inbox:
            data = self.socket.recv(1 << 16)
            assert data, "the engine hung up"
            self.inbox += self.decoder.feed(data)
        return self.inbox.pop(0)

    def tokens_until_the_end_of(self, rows: set[int]) -> dict[int, tuple[list[int], str]]:
        results: dict[int, tuple[list[int], str]] = {}
        while rows - {row for row, (_, finish) in results.items() if finish}:
            message = self.next()
            assert isinstance(message, Tokens)
            for row, token_id, finish in message.tokens:
                results[row] = ([*results.get(row, ([], ""))[0], token_id], finish)
        return results


@pytest.fixture(scope="module")
def engine_settings(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSettings:
    path = tmp_path_factory.mktemp("s") / "e.sock"
    path.write_text("a stale file that an engine left when it was killed")
    return EngineSettings(
        str(path), str(model_dir), "rev-7", max_rows=4, kv_tokens=4096, step_tokens=16, parent_pid=os.getpid()
    )


@pytest.fixture(scope="module")
def process(engine_settings: EngineSettings) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, ENVIRONMENT_VARIABLE: engine_settings.to_json()}
    with subprocess.Popen(COMMAND, env=environment) as process:
        yield process
        process.kill()


def test_rows_of_a_courier_get_the_tokens_that_the_engine_computes(
    process: subprocess.Popen[bytes],
    engine_settings: EngineSettings,
    make_engine: Callable[..., Engine],
    params: Params,
) -> None:
    adds = [Add(row, (5, 6, row), (), params(temperature=1.0, seed=row, max_tokens=20)) for row in range(6)]
    engine = make_engine()
    expected: dict[int, list[int]] = {add.row: [] for add in adds}
    for add in adds:
        engine.add(add)
    while engine.has_rows:
        for row, token_id, _ in engine.step().tokens:
            expected[row].append(token_id)

    with Courier(engine_settings.socket_path) as courier:
        assert courier.hello() == Ready(process.pid, "rev-7", 4, 4096, WORKER_CLASS)
        courier.send(*adds[:3])
        time.sleep(0.01)
        courier.send(*adds[3:])
        results = courier.tokens_until_the_end_of(set(expected))
    assert results == {row: (tokens, "length") for row, tokens in expected.items()}


def test_a_courier_that_dies_takes_its_rows_with_it_and_the_next_one_starts_afresh(
    process: subprocess.Popen[bytes], engine_settings: EngineSettings, params: Params
) -> None:
    """The first courier's rows fill the memory and would run for minutes: the second one's could not start."""
    with Courier(engine_settings.socket_path) as courier:
        courier.hello()
        courier.send(Add(1, (5,), (), params(max_tokens=2000)), Add(2, (6,), (), params(max_tokens=2000)))
        courier.next()
    with Courier(engine_settings.socket_path) as courier:
        assert courier.hello() == Ready(process.pid, "rev-7", 4, 4096, WORKER_CLASS)
        courier.send(Add(1, (7,), (), params(max_tokens=3)), Add(2, (8,), (), params(max_tokens=3900)), Drop((2,)))
        assert len(courier.tokens_until_the_end_of({1})[1][0]) == 3


def test_bad_rows_and_bad_messages_leave_the_engine_alive(
    process: subprocess.Popen[bytes], engine_settings: EngineSettings, params: Params
) -> None:
    with Courier(engine_settings.socket_path) as courier:
        courier.hello()
        courier.send(Add(1, (5000,), (), params()), Add(2, (5,), (), params(max_tokens=2)))
        refused = courier.next()
        assert isinstance(refused, Tokens)
        assert refused.tokens == ((1, 0, "error"),)
        assert "token id" in refused.error
        assert courier.tokens_until_the_end_of({2})[2][1] == "length"
        courier.send(Tokens(()))
        assert courier.socket.recv(1) == b""
    with Courier(engine_settings.socket_path) as courier:
        assert isinstance(courier.next(), Ready)


def test_sigterm_ends_the_process_between_steps_and_removes_the_socket(
    process: subprocess.Popen[bytes], engine_settings: EngineSettings, params: Params
) -> None:
    with Courier(engine_settings.socket_path) as courier:
        courier.hello()
        courier.send(Add(1, (5,), (), params(max_tokens=4000)))
        courier.next()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=START_LIMIT_S) == 0
    assert not Path(engine_settings.socket_path).exists()


def test_an_engine_ends_when_the_process_that_started_it_is_killed(model_dir: Path, tmp_path: Path) -> None:
    program = """
import os, subprocess, sys, time
from headrace.workers.engine.settings import EngineSettings
settings = EngineSettings(sys.argv[1], sys.argv[2], "r", parent_pid=os.getpid())
subprocess.Popen(sys.argv[3:], env={**os.environ, "HEADRACE_ENGINE": settings.to_json()})
time.sleep(100)
"""
    path = str(tmp_path / "e.sock")
    command = [sys.executable, "-c", program, path, str(model_dir), *COMMAND]
    with subprocess.Popen(command) as parent, Courier(path) as courier:
        assert isinstance(courier.hello(), Ready)
        parent.kill()
        courier.socket.settimeout(START_LIMIT_S)
        assert courier.socket.recv(1) == b"", "the engine lets go of its courier"


def measured_again(courier: Courier, costs_dir: Path) -> Costs:
    """The costs of a measurement that was kept: one on which a busy machine left its mark is told, and not kept."""

    def kept() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in costs_dir.glob("*")}

    for _ in range(50):
        before = kept()
        courier.send(Measure())
        costs = courier.next()
        assert isinstance(costs, Costs)
        if kept() != before:
            return costs
    raise AssertionError("no measurement was kept")


def test_an_idle_engine_measures_serves_in_between_and_reads_its_costs_at_the_next_start(
    model_dir: Path, tmp_path: Path, params: Params
) -> None:
    costs_dir, path = tmp_path / "costs", str(tmp_path / "e.sock")
    settings = EngineSettings(
        path, str(model_dir), "r", max_rows=2, kv_tokens=256, step_tokens=16, measure_ms=300, costs_dir=str(costs_dir)
    )
    environment = {**os.environ, ENVIRONMENT_VARIABLE: settings.to_json()}
    with subprocess.Popen(COMMAND, env=environment) as first, Courier(path) as courier:
        courier.hello()
        courier.send(Add(1, (5, 6), (), params(max_tokens=3)))
        messages: list[Message] = []
        while not (any(isinstance(m, Costs) for m in messages) and sum(isinstance(m, Tokens) for m in messages) == 3):
            messages.append(courier.next())
        steps = [message for message in messages if isinstance(message, Tokens)]
        assert [len(step.tokens) for step in steps] == [1, 1, 1]
        assert [(step.num_tokens, step.prompts) for step in steps] == [(2, ((1, 2),)), (1, ()), (1, ())]
        assert all(step.step_ms > 0 for step in steps)
        again = measured_again(courier, costs_dir)
        first.terminate()
        assert first.wait(timeout=START_LIMIT_S) == 0
    assert len(list(costs_dir.iterdir())) == 1
    with (
        subprocess.Popen(COMMAND, env=environment, stderr=subprocess.PIPE, text=True) as second,
        Courier(path) as courier,
    ):
        kept = [courier.next(), courier.next()][1]
        second.terminate()
        assert "costs read from" in second.communicate()[1]
    assert isinstance(kept, Costs)
    assert CostTable.decode(kept.table) == CostTable.decode(again.table)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, ENVIRONMENT_VARIABLE),
        ('{"socket_path": "s", "model_dir": "/nowhere", "revision": "r"}', "/nowhere"),
        ('{"socket_path": "s", "model_dir": "/nowhere", "revision": "r", "dtype": "int8"}', "int8 is for encoders"),
    ],
)
def test_a_process_that_cannot_serve_says_so_and_fails(text: str | None, told: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != ENVIRONMENT_VARIABLE}
    if text is not None:
        environment[ENVIRONMENT_VARIABLE] = text
    ended = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == CONFIGURATION_STATUS
    assert "Traceback" not in ended.stderr
    assert told in ended.stderr
