"""Launches: checked, prepared, asynchronous, on torch's current stream. The only place that knows pointers.

A wrapper gets a kernel once per specialisation and calls it with tensors and numbers::

    scale = load("scale", "scale", "PPif", torch.device("cuda", 0), DTYPE="float")
    scale((num_blocks,), (256,), out, x, x.numel(), 2.0)

Launches may be captured in torch's CUDA graphs. Wrappers check shapes and dtypes; kernels check nothing.
"""

import functools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.build import Macro, Target, cubin
from headrace.kernels.device import Device, open_device
from headrace.kernels.early_launch import EarlyLaunch
from headrace.kernels.tensor_map import MAP_BYTES

Argument = Tensor | bytes | int | float | None
Extent = tuple[int] | tuple[int, int] | tuple[int, int, int]

_LETTERS = frozenset("PiIqQfT")
_NUMBER = (int, float)  # a union would be made anew for each argument
_MAP_PLACE = 48
_entries: set[str] = set()


class Shared(NamedTuple):
    """What a kernel's blocks may ask for of a multiprocessor's shared memory.

    Attributes:
        most_bytes: a block, beside what its source has.
        percent: how much of what a multiprocessor has for its cache and for shared memory should be the latter; None:
            as much as lets most blocks run at once.
    """

    most_bytes: int
    percent: int | None = None


class Ready(NamedTuple):
    """What launching a kernel takes.

    Attributes:
        function: PyCUDA's.
        early: launches it before the kernel in front has ended; None where it has no instruction to wait by.
    """

    function: Any
    early: EarlyLaunch | None


class Kernel:
    """A kernel of one device.

    Args:
        make_ready: loads it.
        params: its signature, as ``load`` takes it.
        device: where it runs.
        name: its own.
        shared_bytes: the most dynamic shared memory of a launch.

    Attributes:
        device: as given.
    """

    def __init__(
        self, make_ready: Callable[[], Ready], params: str, device: Device, name: str, shared_bytes: int
    ) -> None:
        self.device = device
        self._make_ready = make_ready
        self._function: Any = None
        self._launch: Any = None
        self._early: EarlyLaunch | None = None
        self._name = name
        self._shared_bytes = shared_bytes
        self._index = device.index
        # What is no pointer is of these types.
        self._wanted = tuple({"P": None, "T": bytes}.get(letter, _NUMBER) for letter in params)
        self._pack = struct.Struct(_packed(params)).pack

    @property
    def num_registers(self) -> int:
        """A thread's."""
        self.prepare()
        return int(self._function.num_regs)

    @property
    def local_bytes(self) -> int:
        """A thread's spilled or indexed memory; nought in a kernel that is as it should be."""
        self.prepare()
        return int(self._function.local_size_bytes)

    @property
    def max_threads(self) -> int:
        """Of a block."""
        self.prepare()
        return int(self._function.max_threads_per_block)

    def prepare(self) -> None:
        """Load it, if it is not; a launch does so, too.

        Raises:
            ConfigurationError: as of ``load``.
            KernelError: likewise.
        """
        if self._function is None:
            self._function, self._early = self._make_ready()
            # PyCUDA's prepared_async_call is this behind a call of the driver and a look for textures, a fifth of its
            # time.
            self._launch = self._function._launch_kernel

    def __call__(self, grid: Extent, block: Extent, *arguments: Argument, shared_bytes: int = 0) -> None:
        """Launch on torch's current stream; the caller keeps tensors alive as with any of torch's operations.

        The thread must have used torch on the device before, which makes its context current there.

        Args:
            grid: blocks; a grid with no blocks launches nothing.
            block: threads of a block.
            arguments: a tensor (on the device, or page-locked on the host) or None where the signature says ``P``, a
                ``tensor_map`` where it says ``T``, else a number.
            shared_bytes: dynamic shared memory, at most what ``load`` was told.

        Raises:
            KernelError: an argument does not fit the signature or lies elsewhere, or the launch was refused.
        """
        if 0 in grid:
            return
        values = self._values(arguments)
        if shared_bytes > self._shared_bytes:
            raise KernelError(
                f"{self._name} was loaded for {self._shared_bytes} bytes of shared memory, not {shared_bytes}"
            )
        if self.device.rehearsal is not None:
            return
        if self._function is None:
            self.prepare()
        if len(block) < 3:
            block = (*block, 1, 1)[:3]  # PyCUDA takes a shorter grid, but not a shorter block
        try:
            packed = self._pack(*values)
            # A step launches hundreds of kernels: torch.cuda's functions for these two take several times as long.
            if torch._C._cuda_getDevice() != self._index:
                with torch.cuda.device(self._index):
                    self._launch_on_current(grid, block, packed, shared_bytes)
            else:
                self._launch_on_current(grid, block, packed, shared_bytes)
        except _refusals() as error:
            raise KernelError(f"{self._name} was not launched on {grid} blocks of {block}: {error}") from error

    def _launch_on_current(self, grid: Extent, block: Extent, packed: bytes, shared_bytes: int) -> None:
        handle: int = torch._C._cuda_getCurrentRawStream(self._index)
        stream = self.device.own_stream(handle)
        if stream is not None and self._early is not None and self.device.launches_early:
            self._early(grid, block, packed, shared_bytes, handle)
        elif stream is not None:
            self._launch(grid, block, packed, shared_bytes, stream)
        else:
            with self.device.launched_on(handle) as stream:
                self._launch(grid, block, packed, shared_bytes, stream)

    def _values(self, arguments: tuple[Argument, ...]) -> list[bytes | int | float]:
        index = self._index
        if len(arguments) != len(self._wanted):
            raise KernelError(f"{self._name} takes {len(self._wanted)} arguments, not {len(arguments)}")
        values: list[bytes | int | float] = []
        for wanted, argument in zip(self._wanted, arguments, strict=True):
            if wanted is not None:
                if not isinstance(argument, wanted):
                    what = "a number" if wanted is _NUMBER else "a tensor map"
                    raise KernelError(f"{self._name} wants {what} where it was given {type(argument).__name__}")
                values.append(argument)
            elif argument is None:
                values.append(0)
            elif isinstance(argument, Tensor) and argument.get_device() == index:  # -1 on the host
                values.append(argument.data_ptr())
            elif isinstance(argument, Tensor) and argument.is_cpu and argument.is_pinned():
                values.append(argument.data_ptr())  # the same address on both sides
            else:
                where = argument.device if isinstance(argument, Tensor) else type(argument).__name__
                raise KernelError(f"{self._name} wants a tensor on cuda:{index}, not {where}")
        return values


def load(
    source: str, entry: str, params: str, device: torch.device, *, shared_bytes: int | Shared = 0, **defines: Macro
) -> Kernel:
    """Compile (or find in the cache) and load a kernel; the caller keeps it. A device that rehearses does both later.

    Args:
        source: a file in ``cuda/``, without its ending.
        entry: the kernel's name there; it is declared ``extern "C"``.
        params: a letter each parameter: P a pointer, i and I 32 bits with and without sign, q and Q 64 bits, f a float,
            T a tensor map, 48 bytes behind a multiple of 64 (``cuda/tensor_copy.cuh``).
        device: a CUDA device; without an index, torch's current one.
        shared_bytes: the most dynamic shared memory that a launch will ask for, or more about it.
        defines: macros.

    Raises:
        ConfigurationError: no compiler, no PyCUDA, no such GPU.
        KernelError: the source does not compile, or the signature or shared memory is impossible.
    """
    if unknown := set(params) - _LETTERS:
        raise KernelError(f"unknown parameter letters {sorted(unknown)} in {params!r}")
    for at, letter in enumerate(params):
        if letter == "T" and struct.calcsize(_packed(params[:at])) % 64 != _MAP_PLACE:
            raise KernelError(f"a tensor map of {entry} does not lie {_MAP_PLACE} bytes behind a multiple of 64")
    if device.type != "cuda":
        raise KernelError(f"{entry} runs on a GPU, not on {device}")
    opened = open_device(torch.cuda.current_device() if device.index is None else device.index)
    shared = shared_bytes if isinstance(shared_bytes, Shared) else Shared(shared_bytes)
    if shared.most_bytes > opened.shared_bytes:
        raise KernelError(
            f"{entry} wants {shared.most_bytes} bytes of shared memory a block; there are {opened.shared_bytes}"
        )
    _entries.add(entry)
    target = Target.of(source, opened.arch, defines)
    make_ready = functools.partial(_ready, target, opened, entry, params, shared)
    kernel = Kernel(make_ready, params, opened, entry, shared.most_bytes)
    if opened.rehearsal is None:
        kernel.prepare()
    else:
        opened.rehearsal.ask(kernel, target)
    return kernel


def _packed(params: str) -> str:
    """The letters as Python's ``struct`` and PyCUDA have them."""
    return params.replace("T", f"{MAP_BYTES}s")


@functools.cache
def _refusals() -> tuple[type[Exception], ...]:
    import pycuda.driver

    # The third of extents that no 32 bits hold.
    return pycuda.driver.Error, struct.error, OverflowError, KernelError


def is_ours(name: str) -> bool:
    """Whether a kernel of that name has been loaded from ``cuda/``; all of these wait for the kernel before them."""
    return name in _entries


def _ready(target: Target, device: Device, entry: str, params: str, shared: Shared) -> Ready:
    import pycuda.driver

    machine_code = cubin(target)
    module = device.load(machine_code)
    with device.entered():
        try:
            function = module.get_function(entry)
            attributes = pycuda.driver.function_attribute
            if shared.most_bytes:
                function.set_attribute(attributes.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared.most_bytes)
            if shared.percent is not None:
                function.set_attribute(attributes.PREFERRED_SHARED_MEMORY_CARVEOUT, shared.percent)
        except pycuda.driver.Error as error:
            raise KernelError(f"{entry} cannot be prepared: {error}") from error
        early = None
        if device.starts_early:
            early = EarlyLaunch(
                *(machine_code, entry, struct.calcsize(_packed(params))),
                shared_bytes=shared.most_bytes,
                shared_percent=shared.percent,
            )
        return Ready(function, early)
