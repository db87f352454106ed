"""When a process must end: with its parent, and when asked to."""

import ctypes
import os
import signal
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1


def _exit(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def exit_on_sigterm() -> None:
    """Make SIGTERM end the process in an orderly way; call from the main thread.

    It takes effect between two Python instructions, hence after the tensor operation that is running.
    """
    signal.signal(signal.SIGTERM, _exit)


def end_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies; elsewhere only ``is_orphan`` tells.

    SIGKILL, for nobody would be left to send it to an engine that hangs, and an engine has nothing to save. Linux
    counts the thread that started this process as the parent: start it from one that lives as long as its process
    does, the main thread say.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def is_orphan(parent_pid: int | None) -> bool:
    """Say whether the parent is gone.

    The signal of ``end_with_parent`` is lost when the parent dies before it is asked for, so look once after asking.

    Args:
        parent_pid: of the process that started this one; None is never gone.
    """
    return parent_pid is not None and os.getppid() != parent_pid
