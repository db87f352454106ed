"""Launches that let a kernel begin before the one in front of it on its stream has ended: the driver's own call.

What ``programmatic`` does to edges of graphs is, for kernels that are launched one by one, an attribute of the launch
[1]. PyCUDA has neither the call nor a handle to call it with, so the machine code is loaded once more.

[1] CUDA C++ Programming Guide, section "Programmatic Dependent Launch and Synchronization".
"""

import ctypes
import functools
import struct

from headrace.errors import KernelError

_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_MOST_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_SHARED_PERCENT = 9  # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
_BUFFER, _BUFFER_BYTES, _END = 1, 2, 0  # CU_LAUNCH_PARAM_*


# CUlaunchAttribute, whose value is a union of 64 bytes; CUlaunchConfig; five pointers. As the compiler lays them out.
_ATTRIBUTE = struct.Struct("i4xi60x").pack
_CONFIG = struct.Struct("7IPPI0P").pack
_PARAMS = struct.Struct("5P").pack


class EarlyLaunch:
    """A kernel that is launched so. It must wait by itself for what comes before it (``wait_for_earlier_kernels``).

    Args:
        machine_code: a cubin; it is loaded into the current context for good.
        entry: the kernel's name there.
        param_bytes: of all parameters together.
        shared_bytes: the most dynamic shared memory that a launch will ask for.
        shared_percent: as of ``launch.Shared``.

    Raises:
        KernelError: the driver refused.
    """

    def __init__(
        self, machine_code: bytes, entry: str, param_bytes: int, *, shared_bytes: int, shared_percent: int | None = None
    ) -> None:
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _call("cuModuleLoadData", ctypes.byref(module), machine_code)
        _call("cuModuleGetFunction", ctypes.byref(self._function), module, entry.encode())
        if shared_bytes:
            _call("cuFuncSetAttribute", self._function, _MOST_SHARED_BYTES, shared_bytes)
        if shared_percent is not None:
            _call("cuFuncSetAttribute", self._function, _SHARED_PERCENT, shared_percent)
        self._num_bytes = ctypes.c_size_t(param_bytes)
        self._attribute = ctypes.create_string_buffer(_ATTRIBUTE(_STREAM_SERIALIZATION, 1))
        self._launch = _driver().cuLaunchKernelEx

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], packed: bytes, shared_bytes: int, stream: int
    ) -> None:
        """Launch.

        Args:
            grid: blocks.
            block: threads of a block.
            packed: parameters as they lie in memory.
            shared_bytes: dynamic shared memory.
            stream: its handle.

        Raises:
            KernelError: the driver refused.
        """
        extents = (*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3])
        config = _CONFIG(*extents, shared_bytes, stream, ctypes.addressof(self._attribute), 1)
        address = ctypes.c_void_p.from_buffer(ctypes.c_char_p(packed)).value
        params = _PARAMS(_BUFFER, address, _BUFFER_BYTES, ctypes.addressof(self._num_bytes), _END)
        status = self._launch(config, self._function, None, params)
        if status:
            raise KernelError(f"CUDA error {status}")


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: object) -> None:
    status = getattr(_driver(), name)(*arguments)
    if status:
        raise KernelError(f"{name} failed with CUDA error {status}")
