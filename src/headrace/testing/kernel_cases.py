"""A memory-bound kernel beside torch's own operation: what is measured of both, and the rows that tell of it."""

from collections.abc import Callable
from dataclasses import dataclass

from headrace.testing.gpu_timing import Timer
from headrace.testing.rows import Report

# Launches that are shorter are repeated more often.
_SMALL_US = 10
_SMALL_REPETITIONS = 300
#: Of as many bytes and more the card's own copy is timed, too: like a kernel, it takes time to begin and to end.
_LARGE_BYTES = 32 << 20

Operation = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel and its peer on the same data.

    Attributes:
        name: of its rows, behind ``kernel/``.
        moved_bytes: that must move: each input read once, each result written once.
        ours: launches the kernel.
        theirs: launches torch's operation.
        peer: what torch is asked to do.
    """

    name: str
    moved_bytes: int
    ours: Operation
    theirs: Operation
    peer: str


def measure(case: Case, timer: Timer, report: Report, copy_gb_per_s: float) -> tuple[float, float]:
    """Time both in turn, and tell of time and bandwidth; of large cases beside a copy of as many bytes, too.

    Args:
        case: what is measured.
        timer: overwrites the cache before every run.
        report: where rows go.
        copy_gb_per_s: what the card copies at, the peer of the bandwidth.

    Returns:
        The medians of ours and theirs, us.
    """
    moved_kb = case.moved_bytes / 1e3
    copying = [timer.copying(case.moved_bytes // 2)] if case.moved_bytes >= _LARGE_BYTES else []
    ours, theirs, *copied = timer.medians_us([case.ours, case.theirs, *copying])
    if ours < _SMALL_US:
        ours, theirs = timer.medians_us([case.ours, case.theirs], _SMALL_REPETITIONS)
    name, rate = f"kernel/{case.name}", moved_kb / ours
    report.add(name, "time", ours, "us", peer=case.peer, peer_value=theirs)
    report.add(name, "bandwidth", rate, "GB/s", peer="copy", peer_value=copy_gb_per_s)
    for copy_us in copied:
        report.add(name, "bandwidth_of_size", rate, "GB/s", peer="copy of as many bytes", peer_value=moved_kb / copy_us)
    return ours, theirs
