"""Rehearsals: kernels are asked for and not launched, so that all that is to come is compiled side by side.

A compiler takes a second a kernel. Steps that are computed ask for one after the other; in a rehearsal they only ask.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from headrace.kernels.build import Target, cubin

#: At work at once, where there are so many cores: one takes some hundred megabytes.
MOST_COMPILERS = 16


def _num_cores() -> int:
    """Those that this process may use, where the system says which."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Prepared(Protocol):
    """A kernel that can be made ready to be launched."""

    def prepare(self) -> None:
        """Load its machine code; once more is no error."""


class Rehearsal:
    """The kernels that were asked for while one device rehearsed."""

    def __init__(self) -> None:
        self._compilers = ThreadPoolExecutor(min(MOST_COMPILERS, _num_cores()), "compiler")
        self._asked: list[tuple[Prepared, Future[bytes]]] = []
        self._compiled: dict[Target, Future[bytes]] = {}

    def ask(self, kernel: Prepared, target: Target) -> None:
        """Begin to compile a kernel, if the cache has none; several may be of one target."""
        if target not in self._compiled:
            self._compiled[target] = self._compilers.submit(cubin, target)
        self._asked.append((kernel, self._compiled[target]))

    def finish(self) -> None:
        """Wait for the compilers, and make all kernels ready.

        Raises:
            ConfigurationError: as of ``cubin``.
            KernelError: as of ``cubin``, or a kernel cannot be loaded.
        """
        for kernel, compiled in self._asked:
            compiled.result()
            kernel.prepare()

    def end(self) -> None:
        """Compile nothing more; what has been asked for and is not ready is prepared when it is launched."""
        self._compilers.shutdown(cancel_futures=True)
