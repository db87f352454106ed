"""The supervisor over tiny real processes: shell scripts that write down when they start and stop."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.waiting import LIMIT_S, until

import headrace.workers.child as child_module
from headrace.errors import ConfigurationError
from headrace.workers.child import Child, ChildSpec
from headrace.workers.supervisor import Supervisor

_PROGRAM = """
import logging, os, sys
from pathlib import Path
from headrace.workers.child import ChildSpec
from headrace.workers.supervisor import Supervisor

def spec(name, script, grace_s=5.0, ready=None, restart=True):
    is_ready = None if ready is None else Path(ready).exists
    return ChildSpec(name, ["sh", "-c", script], dict(os.environ), grace_s, is_ready, restart)

logging.basicConfig(level=logging.INFO, format="%(message)s")
stages = [[spec(**child) for child in stage] for stage in eval(sys.argv[1])]
sys.exit(Supervisor(stages, 0.1, lambda: print("all ready", flush=True)).run())
"""


class Run:
    """A supervisor in a process of its own, and the file that its children write to."""

    def __init__(self, folder: Path, stages: Sequence[Sequence[dict[str, object]]]) -> None:
        self.log = folder / "log"
        self.log.touch()
        self.err = folder / "err"
        with self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, repr(stages)], stdout=subprocess.PIPE, stderr=err, cwd=folder
            )

    def lines(self) -> list[str]:
        """What the children wrote."""
        return self.log.read_text().splitlines()

    def until(self, *lines: str) -> None:
        """Wait until the children have written these lines."""
        until(lambda: set(lines) <= set(self.lines()))

    def pid(self, name: str) -> int:
        """The process of the newest start of a child."""
        started = re.compile(rf"^{name} started, process (\d+)$", re.MULTILINE)
        until(lambda: started.search(self.err.read_text()) is not None)  # it may write before its maker does
        return int(started.findall(self.err.read_text())[-1])

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:  # not read to its end: a child that wrongly lived would hold it open
            self.process.stdout.close()


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    runs: list[Run] = []

    def start_supervisor(*stages: Sequence[dict[str, object]]) -> Run:
        runs.append(Run(tmp_path, stages))
        return runs[-1]

    yield start_supervisor
    for run in runs:
        run.close()


def _lives(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _lasting(name: str, **options: object) -> dict[str, object]:
    script = f"trap 'echo {name} stops >>log; exit 0' TERM; echo {name} starts >>log; while :; do sleep 0.02; done"
    return {"name": name, "script": script, **options}


_AFTER_BROKER = "while ! grep -q 'broker starts' log; do sleep 0.02; done"


def _deaf(name: str, **options: object) -> dict[str, object]:
    script = f"trap '' TERM; echo {name} starts >>log; while :; do sleep 0.02; done"
    return {"name": name, "script": script, **options}


def test_stages_start_in_order_and_stop_in_reverse(start: Start, tmp_path: Path) -> None:
    marks = [str(tmp_path / name) for name in ("1", "2")]
    stages = [
        [{**_lasting("broker", ready=marks[0])}],
        [{**_lasting("worker", ready=marks[1])}],
        [_lasting("question")],
    ]
    run = start(*stages)
    run.until("broker starts")
    time.sleep(0.2)
    assert run.lines() == ["broker starts"]  # the next stage waits for the first one's readiness
    Path(marks[0]).touch()
    run.until("worker starts")
    Path(marks[1]).touch()
    run.until("question starts")
    assert run.end() == 0
    assert run.lines() == [f"{n} starts" for n in ("broker", "worker", "question")] + [
        f"{n} stops" for n in ("question", "worker", "broker")
    ]


def test_readiness_is_told_once_all_stages_are_ready(start: Start, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    run = start([_lasting("a", ready=str(mark))])
    run.until("a starts")
    assert run.process.stdout is not None
    os.set_blocking(run.process.stdout.fileno(), False)
    assert not run.process.stdout.read()
    mark.touch()
    os.set_blocking(run.process.stdout.fileno(), True)
    assert run.process.stdout.readline() == b"all ready\n"


def test_a_child_that_is_killed_is_started_again(start: Start) -> None:
    run = start([_lasting("a"), _lasting("b")])
    run.until("a starts", "b starts")
    old = run.pid("a")
    os.kill(old, signal.SIGKILL)
    until(lambda: run.lines().count("a starts") == 2 and run.pid("a") != old)
    assert run.lines().count("b starts") == 1
    assert "killed by SIGKILL" in run.err.read_text()


def test_pauses_double_while_a_child_keeps_dying(start: Start) -> None:
    run = start([{"name": "a", "script": "date +%s%N >>log; exit 1"}])
    until(lambda: len(run.lines()) == 4)
    starts_s = [int(line) / 1e9 for line in run.lines()]
    pauses_s = [after - before for before, after in itertools.pairwise(starts_s)]
    for pause_s, least_s in zip(pauses_s, (0.1, 0.2, 0.4), strict=True):
        assert pause_s > least_s - 0.02


def _pauses_s(monkeypatch: pytest.MonkeyPatch, lives_s: Sequence[float]) -> list[float]:
    """The pauses of a child that lives so long each time, by a clock that the test turns."""
    now_s = 1000.0
    monkeypatch.setattr(child_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    child = Child(ChildSpec("a", ["true"], dict(os.environ), 1.0), 0.1)
    pauses_s = []
    for life_s in lives_s:
        child.start()
        assert child.process is not None
        child.process.wait()
        now_s += life_s
        child.schedule_restart("test")
        assert child.restart_at_s is not None
        pauses_s.append(round(child.restart_at_s - now_s, 3))
    return pauses_s


def test_a_child_that_lived_is_started_again_after_the_shortest_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _pauses_s(monkeypatch, [1, 1, 1, 60, 1]) == [0.1, 0.2, 0.4, 0.1, 0.2]


def test_a_pause_is_five_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _pauses_s(monkeypatch, [0] * 9)[-2:] == [5.0, 5.0]


def test_a_configuration_error_of_one_child_ends_all_with_status_2(start: Start) -> None:
    run = start([_lasting("broker")], [{"name": "worker", "script": f"{_AFTER_BROKER}; exit 2"}, _lasting("other")])
    assert run.process.wait(LIMIT_S) == 2
    assert run.lines()[-1] == "broker stops"
    assert run.err.read_text().count("worker started") == 1


def test_the_exit_of_a_child_that_is_not_restarted_ends_all_with_its_status(start: Start) -> None:
    run = start([_lasting("broker")], [{"name": "question", "script": f"{_AFTER_BROKER}; exit 7", "restart": False}])
    assert run.process.wait(LIMIT_S) == 7
    assert run.lines() == ["broker starts", "broker stops"]


def test_a_child_that_does_not_stop_is_killed_after_its_grace_and_the_next_stage_stops_then(start: Start) -> None:
    run = start([_lasting("broker")], [_deaf("worker", grace_s=0.3)])
    run.until("broker starts", "worker starts")
    worker = run.pid("worker")
    start_s = time.monotonic()
    assert run.end() == 0
    assert 0.3 <= time.monotonic() - start_s < 2.0
    assert not _lives(worker)
    assert run.lines()[-1] == "broker stops"


def test_a_second_signal_is_forwarded_and_shortens_a_long_grace(start: Start) -> None:
    script = "trap 'echo signal >>log' TERM; echo worker starts >>log; while :; do sleep 0.02; done"
    run = start([{"name": "worker", "script": script, "grace_s": 60.0}])
    run.until("worker starts")
    run.process.send_signal(signal.SIGINT)
    run.until("signal")
    start_s = time.monotonic()
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(LIMIT_S) == 0
    assert time.monotonic() - start_s < 6.0
    assert run.lines().count("signal") == 2


def test_a_signal_while_a_stage_starts_stops_what_has_started(start: Start, tmp_path: Path) -> None:
    run = start([_lasting("broker", ready=str(tmp_path / "never"))], [_lasting("worker")])
    run.until("broker starts")
    assert run.end(signal.SIGINT) == 0
    assert run.lines() == ["broker starts", "broker stops"]


def test_a_child_that_pauses_is_not_started_again_by_a_stop(start: Start) -> None:
    run = start([{"name": "a", "script": "echo a starts >>log; exit 1"}])
    until(lambda: len(run.lines()) == 4)  # the pause is 0.8 s now
    num_starts = len(run.lines())
    assert run.end() == 0
    assert len(run.lines()) == num_starts


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux promises it")
def test_kill_9_of_the_supervisor_kills_its_children_and_theirs(start: Start, tmp_path: Path) -> None:
    inner = f'exec "{sys.executable}" -c "$PROGRAM" "$STAGES"'
    os.environ["PROGRAM"], os.environ["STAGES"] = _PROGRAM, repr([[_deaf("inner")]])
    try:
        run = start([_deaf("outer"), {"name": "middle", "script": inner}])
    finally:
        del os.environ["PROGRAM"], os.environ["STAGES"]
    run.until("outer starts", "inner starts")
    pids = [run.pid(name) for name in ("outer", "middle", "inner")]
    assert all(_lives(pid) for pid in pids)
    run.process.kill()
    until(lambda: not any(_lives(pid) for pid in pids))


def test_a_terminals_ctrl_c_reaches_the_supervisor_alone(start: Start) -> None:
    run = start([_lasting("a")])
    run.until("a starts")
    assert os.getpgid(run.pid("a")) != os.getpgid(run.process.pid)


def test_a_program_that_does_not_exist_stops_what_has_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"trap 'echo stops >>{log}; exit 0' TERM; echo starts >>{log}; while :; do sleep 0.02; done"
    broker = ChildSpec("broker", ["sh", "-c", script], dict(os.environ), 5.0, ready=log.exists)
    absent = ChildSpec("worker", ["/nowhere/at-all"], {}, 5.0)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigurationError, match="cannot start worker"):
        Supervisor([[broker], [absent]], 0.1).run()
    assert log.read_text().split() == ["starts", "stops"]
    assert signal.getsignal(signal.SIGTERM) is handler
