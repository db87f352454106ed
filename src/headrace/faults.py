"""Fault points: places at which a scheduler dies when it is told to, as kill -9 does, so that tests see what it leaves.

With ``HEADRACE_FAULT=<name>`` or ``<name>:<count>`` in its environment, a scheduler kills itself where it passes that
point for the first, or the ``count``-th, time; with ``stop:`` in front it stops there, as by SIGSTOP, until SIGCONT.
Between any two of its commands lies a point, unless both only read; where commands are sent together, one says that the
server has got only some of them. Without the variable a point is a comparison.
"""

import os
import signal
from collections.abc import Callable, Mapping

from headrace.errors import ConfigurationError
from headrace.nearest import nearest

VARIABLE = "HEADRACE_FAULT"

#: Every point, in the order of a scheduler's life: its name, and what has just happened.
POINTS: Mapping[str, str] = {
    "contract.read": "the queue's version is read",
    "contract.adopted": "the queue has a version",
    "tenants.read": "the tenants that the queue knows are read",
    "tenants.entered": "one more tenant is entered",
    "leader.read": "the leader's name is read",
    "leader.answered": "this scheduler knows whether it leads",
    "beat.told": "its heartbeat is written",
    "beat.done": "the silent ones of its kind are forgotten",
    "step.woken": "there is something to do, or time is over",
    "workers.timed": "the time is read by which workers are silent",
    "workers.forgotten": "the silent ones are forgotten",
    "workers.read": "the living workers are known",
    "costs.read": "the published cost tables are known",
    "fit.done": "batches will fit them",
    "forget.found": "classes are found whose last worker is long gone",
    "forget.partly": "some of them are forgotten in part",
    "forget.done": "all of them are forgotten",
    "reap.due": "it is time to reap",
    "reap.done": "a round of reaping is over",
    "requests.read": "a window of every stream is read",
    "clock.read": "the server's clock is read",
    "slice.judged": "a slice of a window is judged, while the one before it may be under way",
    "admit.begun": "a judged slice is about to be sent",
    "admit.first": "the first part of a slice is admitted",
    "admit.partly": "one more part of it is admitted, and its answer not read",
    "admit.done": "all of the slice is admitted",
    "admit.refused": "a full server has refused to admit",
    "batches.counted": "the batches are counted that no worker has taken",
    "window.read": "the first of the ready requests are read",
    "window.cut": "they are cut into batches",
    "dispatch.first": "the first batch is dispatched",
    "dispatch.partly": "one more batch is dispatched, and its answer not read",
    "dispatch.done": "all batches for one class are dispatched",
    "step.done": "a round is over",
    "resign.read": "a scheduler that ends has seen who leads",
    "resign.done": "another one may lead",
    "leave.partly": "its heartbeat is gone, and it is still on the list",
    "leave.done": "it is off the list",
}


class _Fuse:
    """Kills or stops the process at one point."""

    def __init__(self, name: str, count: int, number: signal.Signals) -> None:
        self._name = name
        self._left = count
        self._signal = number

    def __call__(self, name: str, first: Callable[[], object] | None) -> None:
        if name != self._name:
            return
        self._left -= 1
        if not self._left:
            if first is not None and self._signal == signal.SIGKILL:
                first()
            os.kill(os.getpid(), self._signal)


#: The process's own, since it dies as a whole; None where nobody asked for a fault.
_fuse: Callable[[str, Callable[[], object] | None], None] | None = None


def arm(environ: Mapping[str, str]) -> None:
    """Obey ``HEADRACE_FAULT``, if it is there.

    Raises:
        ConfigurationError: it names no point, or a count that is none.
    """
    global _fuse
    wanted = environ.get(VARIABLE, "")
    stops = wanted.startswith("stop:")
    name, _, count = wanted.removeprefix("stop:").partition(":")
    if not wanted:
        _fuse = None
    elif name not in POINTS:
        raise ConfigurationError(f"{VARIABLE}: {name!r} is no fault point; {nearest(name, POINTS)}")
    elif count and not (count.isascii() and count.isdigit() and int(count)):
        raise ConfigurationError(f"{VARIABLE}: {count!r} is not how often to pass {name}; give a number from 1 on")
    else:
        _fuse = _Fuse(name, int(count or 1), signal.SIGSTOP if stops else signal.SIGKILL)


def fault_point(name: str, first: Callable[[], object] | None = None) -> None:
    """End here, as by kill -9, if the process is told to, or stop.

    Args:
        name: one of ``POINTS``.
        first: done before the end: sends what the server has got by then of commands that are sent together.
    """
    if _fuse is not None:
        _fuse(name, first)
