"""Schedulers that die, or stop, between any two of their steps: nothing is lost, and nothing dispatched twice."""

import ast
import os
import re
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import redis.connection
from tests.redis.mixed_load import STREAMS, TENANT, MixedLoad
from tests.redis.scheduler_process import leader_pid, scheduler
from tests.unit.contract.actors import Actors
from tests.waiting import until

import headrace
from headrace import faults
from headrace.broker import Broker
from headrace.config import Settings
from headrace.errors import ConfigurationError
from headrace.faults import POINTS, arm, fault_point
from headrace.testing.servers import Server
from headrace.testing.words import word_tokenizer
from headrace.workers.scheduler.admission import Admitter
from headrace.workers.scheduler.process import Scheduler

#: Small windows and batches, so that there are many rounds of many commands; a lease that no busy machine outlasts.
GIVEN: dict[str, Any] = {"queue": "test", "model": "test", "lease_ms": 5_000, "window": 16, "max_batch_rows": 4,
         "max_backlog_batches": 3, "tenants": {TENANT: 1.0}}  # fmt: skip
#: Passed when a scheduler is asked to end.
AT_THE_END = [name for name in POINTS if name.startswith(("resign.", "leave."))]
#: Passed at the start, or so seldom that the second time would take a second.
SELDOM = ("contract.", "tenants.read", "beat.", "workers.", "costs.", "fit.", "forget.",
          "admit.partly", "dispatch.partly")  # fmt: skip
ON_A_FULL_SERVER = "admit.refused"
IN_A_ROUND = [name for name in POINTS if name not in (*AT_THE_END, ON_A_FULL_SERVER)]
#: Where a leader knows something that may be untrue by the time it goes on.
KNOWING = [name for name in IN_A_ROUND if name.startswith(("leader.", "step.", "reap.", "requests.", "clock.", "slice.",
           "admit.", "batches.", "window.", "dispatch."))]  # fmt: skip


@pytest.fixture
def load(valkey_server: Server) -> Iterator[MixedLoad]:
    broker = Broker.connect(Settings(redis_url=valkey_server.url, **GIVEN))
    yield MixedLoad(Actors(broker))
    broker.close()


def later(point: str) -> str:
    """A fault not at the first passage of a point, where there are several soon."""
    return point if point.startswith(SELDOM) else f"{point}:2"


def num_batches(load: MixedLoad) -> int:
    return load.actors.broker.load()["batches"]


def is_handed_over(load: MixedLoad) -> bool:
    """The backlog is full, or nothing is left to go into it."""
    broker = load.actors.broker
    load.worker.renew()
    counts = broker.load()
    is_left = counts["ready"] or any(broker.stream_lengths(STREAMS).values())
    return counts["batches"] >= GIVEN["max_backlog_batches"] or not is_left


def dies(load: MixedLoad, process: BaseProcess) -> None:
    """Work until a process has died at its fault point."""

    def is_dead() -> bool:
        load.worker.work()
        return not process.is_alive()

    until(is_dead)
    assert process.exitcode == -signal.SIGKILL
    # Its lease ends, or each of these tests would wait for it.
    load.actors.client.delete(load.actors.broker.keys.leader)


@pytest.mark.parametrize("point", IN_A_ROUND)
def test_a_scheduler_that_starts_after_another_died_between_two_steps_loses_nothing_and_doubles_nothing(
    valkey_server: Server, load: MixedLoad, point: str
) -> None:
    load.put()
    with scheduler(valkey_server, GIVEN, point) as first:
        dies(load, first)
    with scheduler(valkey_server, GIVEN):
        until(load.is_over)
    load.settled()


@pytest.mark.parametrize("point", IN_A_ROUND)
def test_a_standby_of_a_scheduler_that_dies_between_two_steps_loses_nothing_and_doubles_nothing(
    valkey_server: Server, load: MixedLoad, point: str
) -> None:
    load.put()
    with scheduler(valkey_server, GIVEN, later(point)) as first:
        until(lambda: leader_pid(load.actors.broker) == first.pid or not first.is_alive())
        with scheduler(valkey_server, GIVEN):
            dies(load, first)
            until(load.is_over)
    load.settled()


@pytest.mark.parametrize("point", KNOWING)
def test_a_leader_that_stops_between_two_steps_and_wakes_when_another_leads_dispatches_nothing_twice(
    valkey_server: Server, load: MixedLoad, point: str
) -> None:
    load.put()
    with scheduler(valkey_server, GIVEN, f"stop:{later(point)}") as first:
        assert first.pid is not None
        stat = Path(f"/proc/{first.pid}/stat")

        def has_stopped() -> bool:
            load.worker.work()
            return stat.read_text().rpartition(")")[2].split()[0] == "T"

        until(has_stopped)
        load.actors.client.delete(load.actors.broker.keys.leader)
        with scheduler(valkey_server, GIVEN) as other:
            assert other.pid is not None
            # The other one hands over what the first had in mind, and stops; there is room for a batch again.
            until(lambda: is_handed_over(load))
            os.kill(other.pid, signal.SIGSTOP)
            load.worker.work()
            os.kill(first.pid, signal.SIGCONT)
            time.sleep(0.05)  # for the first to end its round: it then sees that it does not lead
            load.worker.look()
            os.kill(other.pid, signal.SIGCONT)
            until(load.is_over)
            assert first.is_alive()
    load.settled()


@pytest.mark.parametrize("point", AT_THE_END)
def test_a_scheduler_that_dies_while_it_ends_in_order_loses_nothing_and_doubles_nothing(
    valkey_server: Server, load: MixedLoad, point: str
) -> None:
    load.put()
    with scheduler(valkey_server, GIVEN, point) as first:
        until(lambda: num_batches(load) >= GIVEN["max_backlog_batches"])
        first.terminate()
        dies(load, first)
    with scheduler(valkey_server, GIVEN):
        until(load.is_over)
    load.settled()


def test_a_scheduler_that_dies_when_a_full_server_has_refused_loses_nothing_and_doubles_nothing() -> None:
    with Server("valkey") as server:
        broker = Broker.connect(Settings(redis_url=server.url, **GIVEN))
        load = MixedLoad(Actors(broker))
        load.put()
        broker.adopt_contract()
        broker.serve_tenants(STREAMS)
        broker.client.config_set("maxmemory", 1)
        with scheduler(server, GIVEN, ON_A_FULL_SERVER) as first:
            dies(load, first)
        broker.client.config_set("maxmemory", 0)
        with scheduler(server, GIVEN):
            until(load.is_over)
        load.settled()
        broker.close()


#: Commands that change nothing; one that runs a script counts as a write.
READS = {"INFO", "TIME", "GET", "HGET", "HMGET", "HGETALL", "XREAD", "XRANGE", "ZRANGE", "ZRANGEBYSCORE"}
#: In one transaction, which the server carries out whole or not at all.
TOGETHER = {"MULTI", "EXEC"}


class Recorder:
    """Writes down commands and fault points in the order in which a scheduler comes to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.points: set[str] = set()
        #: The points passed before each thing that was sent, and the commands in it.
        self.sent: list[tuple[list[str], list[str]]] = []
        self._since: list[str] = []
        connection: Any = redis.connection.AbstractConnection
        single, several = connection.send_command, connection.send_packed_command
        packing = connection.pack_commands
        names: list[str] = []

        def send_command(self_: Any, *args: Any, **kwargs: Any) -> None:
            names[:] = [str(args[0]).split()[0].upper()]
            single(self_, *args, **kwargs)

        def pack_commands(self_: Any, commands: Any) -> Any:
            commands = list(commands)
            names[:] = [str(args[0]).split()[0].upper() for args in commands]
            return packing(self_, commands)

        def send_packed_command(self_: Any, *args: Any, **kwargs: Any) -> None:
            self.sent.append((self._since, names[:]))
            self._since = []
            several(self_, *args, **kwargs)

        monkeypatch.setattr(connection, "send_command", send_command)
        monkeypatch.setattr(connection, "pack_commands", pack_commands)
        monkeypatch.setattr(connection, "send_packed_command", send_packed_command)
        monkeypatch.setattr(faults, "_fuse", self.passed)

    def passed(self, name: str, _: object) -> None:
        self.points.add(name)
        self._since.append(name)

    def unguarded(self) -> Iterator[str]:
        """Commands that follow upon each other, one of them a write, without a point between them."""
        before = set(READS)
        for points, commands in self.sent:
            if not points and not (before | set(commands)) <= READS:
                yield f"{sorted(before)}, then {commands}"
            num_partly = sum(name.endswith(".partly") for name in points)
            if not set(commands) <= READS and not TOGETHER & set(commands) and num_partly < len(commands) - 1:
                yield f"between {commands}"
            before = set(commands)


def test_between_any_two_commands_of_which_one_writes_there_is_a_fault_point(
    valkey_server: Server, load: MixedLoad, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(redis_url=valkey_server.url, **GIVEN)
    load.put()
    with scheduler(valkey_server, GIVEN):  # from which the server has the scripts
        until(load.is_over)
    load.actors.client.flushdb()
    load = MixedLoad(load.actors)
    load.put()
    broker = Broker.connect(settings)
    own = Scheduler(broker, Admitter(word_tokenizer(64), "r1", settings), settings)
    recorder = Recorder(monkeypatch)
    steps = iter(range(8))

    def step() -> None:
        load_is_far = next(steps, None) is None
        Scheduler.step(own)
        if load_is_far:
            own.stop()

    monkeypatch.setattr(own, "step", step)
    broker.adopt_contract()
    own.run()
    monkeypatch.undo()
    broker.close()
    assert list(recorder.unguarded()) == []
    assert recorder.points <= POINTS.keys()
    # The others lie where nothing is sent, or need a full server.
    assert POINTS.keys() - recorder.points == {ON_A_FULL_SERVER}


def test_every_fault_point_in_the_code_is_declared_and_lies_in_one_place() -> None:
    names: list[str] = []
    # Links are not followed: the package's folders beside it are some.
    folders = [path.resolve() for path in Path(headrace.__file__).parent.iterdir() if path.is_dir()]
    files = {file.resolve() for folder in (Path(headrace.__file__).parent, *folders) for file in folder.rglob("*.py")}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fault_point":
                names += _declared(node.args[0])
    assert sorted(names) == sorted(POINTS)


def _declared(argument: ast.expr) -> list[str]:
    """The points that an argument may mean: itself, or whichever of them fit an f-string."""
    if isinstance(argument, ast.Constant):
        return [str(argument.value)]
    assert isinstance(argument, ast.JoinedStr), ast.unparse(argument)
    parts = [
        re.escape(str(part.value)) if isinstance(part, ast.Constant) else "(admit|dispatch)" for part in argument.values
    ]
    return [name for name in POINTS if re.fullmatch("".join(parts), name)]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("nowhere", "no fault point"), ("step.done:x", "from 1 on"), ("step.done:0", "from 1 on"), ("stop:", "no fault")],
)
def test_a_fault_that_there_is_not_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        arm({faults.VARIABLE: wanted})


def test_an_unarmed_point_does_nothing() -> None:
    arm({})
    fault_point("step.done", lambda: pytest.fail("it is not armed"))
