"""A GPU as PyCUDA and torch share it: its primary context, its properties, its streams.

Both libraries work in the device's primary context, so that pointers, streams and graphs of one are valid in the other.
PyCUDA is imported when the first device is opened: a machine without it can import this module.
"""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from headrace.errors import ConfigurationError, KernelError
from headrace.kernels.build import architecture
from headrace.kernels.rehearsal import Rehearsal


@dataclass(eq=False, slots=True)
class Device:
    """An open GPU; get one from ``open_device``.

    Attributes:
        index: as in ``cuda:<index>``.
        arch: architecture that kernels are compiled for.
        num_sms: streaming multiprocessors.
        l2_bytes: size of the second-level cache.
        shared_bytes: shared memory that one block may ask for.
        context: the primary context, PyCUDA's object.
        launches_early: whether kernels may begin before the one in front of them has ended: the choice of the one
            thread that launches.
        rehearsal: gathers kernels that are asked for; None: they are launched. Like the above, of the one thread that
            launches: what another one launched meanwhile would be lost.
    """

    index: int
    arch: str
    num_sms: int
    l2_bytes: int
    shared_bytes: int
    context: Any
    launches_early: bool = False
    rehearsal: Rehearsal | None = None
    _streams: dict[int, Any] = field(default_factory=dict)
    _modules: list[Any] = field(default_factory=list)
    _detour: torch.cuda.ExternalStream = field(init=False)

    def __post_init__(self) -> None:
        # It stands in for all foreign streams: work that meets there is in order, which is never wrong.
        self._detour = self.new_stream()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the context PyCUDA's current one, for what needs that: loading modules, making streams."""
        self.context.push()
        try:
            yield
        finally:
            self.context.pop()

    @contextmanager
    def launching_early(self) -> Iterator[None]:
        """Let kernels that are launched within, on streams of ours, begin before the one in front of them has ended.

        Only kernels from ``cuda/`` may be, which wait by themselves; GPUs before Hopper have no instruction for it.
        """
        before = self.launches_early
        self.launches_early = self.starts_early
        try:
            yield
        finally:
            self.launches_early = before

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Launch none of our kernels within, and have all that are asked for ready at the end.

        What torch does is done, on memory that holds nothing of use; what our kernels should have written is not there.

        Raises:
            ConfigurationError: as of ``launch.load``.
            KernelError: likewise; or a rehearsal is at hand already.
        """
        if self.rehearsal is not None:
            raise KernelError("a rehearsal cannot be part of another one")
        rehearsal = self.rehearsal = Rehearsal()
        try:
            yield
            rehearsal.finish()
        finally:
            self.rehearsal = None
            rehearsal.end()

    @property
    def starts_early(self) -> bool:
        """Whether kernels of this GPU have an instruction to wait by."""
        return int(self.arch.removeprefix("sm_").rstrip("a")) >= 90

    def load(self, machine_code: bytes) -> Any:
        """Load a cubin as a PyCUDA module, which lives until the process ends."""
        with self.entered():
            module = _driver().module_from_buffer(machine_code)
        self._modules.append(module)
        return module

    def allocate(self, num_bytes: int) -> Any:
        """Allocate memory: PyCUDA's object, to be given to ``free``.

        Raises:
            ConfigurationError: there is not so much in one piece.
        """
        driver = _driver()
        with self.entered():
            try:
                return driver.mem_alloc(num_bytes)
            except driver.MemoryError as error:
                free, total = driver.mem_get_info()
                raise ConfigurationError(
                    f"cuda:{self.index} has no {num_bytes:,} bytes in one piece ({free:,} of {total:,} are free): "
                    "lower memory_fraction"
                ) from error

    def free(self, allocation: Any) -> None:
        """Free memory of ``allocate``, in any thread.

        By itself PyCUDA would do so only in the thread that opened the GPU, and garbage is collected in whichever
        thread is at work then.
        """
        with self.entered():
            allocation.free()

    def new_stream(self) -> torch.cuda.ExternalStream:
        """Make a stream that both libraries launch on directly; it lives until the process ends.

        On a stream that torch has made, a launch has to go by way of one of these (see ``launched_on``).
        """
        with self.entered():
            # 1: does not wait for the legacy default stream, like torch's own.
            stream = _driver().Stream(1)
        self._streams[stream.handle] = stream
        return _as_torch(stream.handle, self.index)

    def own_stream(self, handle: int) -> Any:
        """The PyCUDA stream of a handle, if it is one of ours; else None."""
        return self._streams.get(handle)

    @contextmanager
    def launched_on(self, handle: int) -> Iterator[Any]:
        """Yield the PyCUDA stream on which work goes that shall be in order with the stream of a ``handle``.

        PyCUDA cannot adopt a foreign stream. For one that torch has made, the work runs on a stream of ours between
        two events: in a captured graph these become plain edges and cost nothing; else about 10 us.
        """
        if handle == 0:
            yield None  # the legacy default stream, which is torch's default too
        elif handle in self._streams:
            yield self._streams[handle]
        else:
            foreign = _as_torch(handle, self.index)
            own = self._detour
            own.wait_event(foreign.record_event())
            yield self._streams[own.cuda_stream]
            foreign.wait_event(own.record_event())


@functools.cache
def open_device(index: int) -> Device:
    """Open a GPU; a second call returns the same object.

    Raises:
        ConfigurationError: PyCUDA is not installed, torch sees no such GPU, it is too old, or the driver refuses it.
    """
    driver = _driver()
    if not torch.cuda.is_available():
        remedy = "check the driver" if torch.version.cuda else "install a torch that is built for CUDA"
        raise ConfigurationError(f"no GPU: torch finds no CUDA device; {remedy}, or run on the CPU")
    if not 0 <= index < torch.cuda.device_count():
        raise ConfigurationError(f"there is no cuda:{index}; this machine has {torch.cuda.device_count()} GPUs")
    arch = architecture(torch.cuda.get_device_capability(index))
    try:
        driver.init()
        handle = driver.Device(index)
        attribute = driver.device_attribute
        device = Device(
            index,
            arch,
            handle.get_attribute(attribute.MULTIPROCESSOR_COUNT),
            handle.get_attribute(attribute.L2_CACHE_SIZE),
            handle.get_attribute(attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
            handle.retain_primary_context(),
        )
    except driver.Error as error:  # such as where others have all of its memory, or it is theirs alone
        raise ConfigurationError(
            f"cuda:{index} cannot be opened: {error}; see who else uses it (nvidia-smi)"
        ) from error
    # For good: torch frees page-locked memory and events while the interpreter shuts down, nobody knows in which order,
    # and ends the process with an error if the context has gone before. The driver takes everything back in any case.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(device))
    return device


def _driver() -> ModuleType:
    try:
        import pycuda.driver
    except ImportError as error:
        raise ConfigurationError(f"PyCUDA cannot be imported ({error}); install headrace[gpu]") from error
    driver: ModuleType = pycuda.driver
    return driver


def _as_torch(handle: int, index: int) -> torch.cuda.ExternalStream:
    stream: torch.cuda.ExternalStream = torch.cuda.ExternalStream(handle, device=index)  # type: ignore[no-untyped-call]
    return stream
