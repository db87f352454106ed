"""What an early launch hands to the driver, read back from memory as the driver's headers lay it out."""

import ctypes
import struct
from typing import Any

import pytest

from headrace.errors import KernelError
from headrace.kernels import early_launch
from headrace.kernels.early_launch import EarlyLaunch


class Driver:
    """Notes calls; addresses in them hold only until they return."""

    def __init__(self) -> None:
        self.status = 0
        self.prepared: list[tuple[Any, ...]] = []
        self.launches: list[tuple[Any, ...]] = []

    def cuModuleLoadData(self, module: Any, machine_code: bytes) -> int:  # noqa: N802
        module._obj.value = 11
        self.prepared.append((machine_code,))
        return self.status

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:  # noqa: N802
        function._obj.value = 22
        self.prepared.append((module.value, name))
        return self.status

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> int:  # noqa: N802
        self.prepared.append((function.value, attribute, value))
        return self.status

    def cuLaunchKernelEx(self, config: bytes, function: Any, params: None, extra: bytes) -> int:  # noqa: N802
        # unsigned grid[3], block[3], shared; stream at 32, attributes at 40, their number at 48; 56 bytes
        assert len(config) == 56
        *extents, shared_bytes = struct.unpack_from("7I", config)
        stream, attributes, num_attributes = struct.unpack_from("QQI", config, 32)
        # int id, a value of 64 bytes at 8; 72 bytes
        attribute = ctypes.string_at(attributes, 72)
        assert (num_attributes, *struct.unpack_from("i4xi", attribute), set(attribute[12:])) == (1, 6, 1, {0})
        buffer, address, size, size_at, end = struct.unpack("5Q", extra)
        assert (buffer, size, end, params) == (1, 2, 0, None)
        num_bytes = ctypes.c_size_t.from_address(size_at).value
        self.launches.append((function.value, *extents, shared_bytes, stream, ctypes.string_at(address, num_bytes)))
        return self.status


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(early_launch, "_driver", lambda: found)
    return found


def test_the_driver_is_told_that_the_kernel_may_begin_early(driver: Driver) -> None:
    early = EarlyLaunch(b"code\0more", "scale", 12, shared_bytes=512, shared_percent=28)
    assert driver.prepared == [(b"code\0more",), (11, b"scale"), (22, 8, 512), (22, 9, 28)]
    early((5,), (64, 2, 1), b"\1\0\2" * 4, 256, 2**40 + 7)
    early((5, 6, 7), (64,), b"\0" * 12, 0, 3)
    assert driver.launches == [
        (22, 5, 1, 1, 64, 2, 1, 256, 2**40 + 7, b"\1\0\2" * 4),
        (22, 5, 6, 7, 64, 1, 1, 0, 3, b"\0" * 12),
    ]


def test_nothing_is_asked_of_the_driver_that_a_kernel_does_not_need(driver: Driver) -> None:
    EarlyLaunch(b"code", "scale", 0, shared_bytes=0)
    assert driver.prepared == [(b"code",), (11, b"scale")]
    EarlyLaunch(b"code", "scale", 0, shared_bytes=0, shared_percent=0)
    assert driver.prepared[-1] == (22, 9, 0)


def test_what_the_driver_refuses_is_an_error(driver: Driver) -> None:
    early = EarlyLaunch(b"code", "scale", 0, shared_bytes=0)
    driver.status = 701
    with pytest.raises(KernelError, match="CUDA error 701"):
        early((1,), (1,), b"", 0, 0)
    with pytest.raises(KernelError, match="cuModuleLoadData failed with CUDA error 701"):
        EarlyLaunch(b"code", "scale", 0, shared_bytes=0)
