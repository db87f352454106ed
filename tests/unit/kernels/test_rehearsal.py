"""Kernels that are asked for in a rehearsal, with a compiler that is none."""

from collections.abc import Callable
from threading import Barrier, Event, Thread

import pytest
from tests.waiting import until

from headrace.errors import KernelError
from headrace.kernels import rehearsal as module
from headrace.kernels.build import Target
from headrace.kernels.rehearsal import Rehearsal

ONE, OTHER = (Target(name, "sm_90a", ()) for name in ("one", "other"))


class Asked:
    """A kernel that notes whether it is ready."""

    is_ready = False

    def prepare(self) -> None:
        self.is_ready = True


@pytest.fixture
def compile_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Target], bytes]], None]:
    monkeypatch.setattr(module, "MOST_COMPILERS", 2)
    return lambda compiler: monkeypatch.setattr(module, "cubin", compiler)


def test_kernels_are_compiled_side_by_side_and_ready_at_the_end(compile_by: Callable[..., None]) -> None:
    both = Barrier(2)

    def compiler(target: Target) -> bytes:
        both.wait(timeout=20)  # goes on when the other one has begun
        return target.source.encode()

    compile_by(compiler)
    rehearsal, kernels = Rehearsal(), [Asked(), Asked()]
    for kernel, target in zip(kernels, (ONE, OTHER), strict=True):
        rehearsal.ask(kernel, target)
    assert not any(kernel.is_ready for kernel in kernels)
    rehearsal.finish()
    assert all(kernel.is_ready for kernel in kernels)


def test_kernels_of_one_source_are_compiled_once(compile_by: Callable[..., None]) -> None:
    compiled: list[Target] = []

    def compiler(target: Target) -> bytes:
        compiled.append(target)
        return b""

    compile_by(compiler)
    rehearsal, kernels = Rehearsal(), [Asked(), Asked(), Asked()]
    for kernel, target in zip(kernels, (ONE, OTHER, ONE), strict=True):
        rehearsal.ask(kernel, target)
    rehearsal.finish()
    assert all(kernel.is_ready for kernel in kernels)
    assert sorted(target.source for target in compiled) == ["one", "other"]


def test_what_the_compiler_refuses_is_told_at_the_end(compile_by: Callable[..., None]) -> None:
    def compiler(target: Target) -> bytes:
        if target is OTHER:
            raise KernelError("nvcc refused other.cu")
        return b""

    compile_by(compiler)
    rehearsal, one, other = Rehearsal(), Asked(), Asked()
    rehearsal.ask(one, ONE)
    rehearsal.ask(other, OTHER)
    with pytest.raises(KernelError, match="refused other"):
        rehearsal.finish()
    assert (one.is_ready, other.is_ready) == (True, False)


def test_whoever_waits_is_told_at_once_that_the_compiler_refuses(compile_by: Callable[..., None]) -> None:
    go_on = Event()

    def compiler(target: Target) -> bytes:
        if target is OTHER:
            raise KernelError("nvcc refused other.cu")
        assert go_on.wait(timeout=20)
        return b""

    compile_by(compiler)
    rehearsal, late = Rehearsal(), Asked()
    rehearsal.ask(Asked(), OTHER)
    rehearsal.ask(late, ONE)
    with pytest.raises(KernelError, match="refused other"):
        rehearsal.finish()
    assert not rehearsal._asked[1][1].done()
    go_on.set()
    rehearsal.end()
    assert not late.is_ready


def test_a_rehearsal_that_has_ended_compiles_nothing_more(compile_by: Callable[..., None]) -> None:
    begun: list[Target] = []
    both, go_on = Barrier(3), Event()

    def compiler(target: Target) -> bytes:
        begun.append(target)
        both.wait(timeout=20)
        assert go_on.wait(timeout=20)
        return b""

    compile_by(compiler)
    rehearsal = Rehearsal()
    for number in range(10):
        rehearsal.ask(Asked(), Target(str(number), "sm_90a", ()))
    both.wait(timeout=20)
    ending = Thread(target=rehearsal.end)
    ending.start()
    until(lambda: rehearsal._asked[-1][1].cancelled())
    go_on.set()
    ending.join(timeout=20)
    assert len(begun) == 2
