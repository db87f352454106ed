"""What a launch hands to the driver, on a device that launches nothing."""

import struct
import sys
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from headrace.errors import KernelError
from headrace.kernels import launch
from headrace.kernels.launch import Kernel, Ready, Shared, load
from headrace.kernels.launch import _refusals as refusals

# torch's number for the host: its tensors are on this device.
INDEX = -1


class Function:
    """A function of PyCUDA's that only notes what it is called with."""

    num_regs, local_size_bytes, max_threads_per_block = 32, 0, 1024

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refusal: Exception | None = None

    def _launch_kernel(self, grid: Any, block: Any, packed: bytes, shared_size: int, stream: Any) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append((grid, block, stream, packed, shared_size))


class OneDevice:
    index = INDEX
    launches_early = False
    rehearsal: Any = None

    def own_stream(self, handle: int) -> str | None:
        return "ours" if handle == 7 else None

    def launched_on(self, handle: int) -> AbstractContextManager[str]:
        return nullcontext(f"detour of {handle}")


@pytest.fixture
def function(monkeypatch: pytest.MonkeyPatch) -> Function:
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: INDEX, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 7, raising=False)
    monkeypatch.setattr("headrace.kernels.launch._refusals", lambda: (struct.error,))
    return Function()


def kernel(function: Function, params: str) -> Kernel:
    device: Any = OneDevice()
    return Kernel(lambda: Ready(function, None), params, device, "scale", 64)


def test_tensors_become_addresses_and_numbers_stay_as_the_driver_wants_them(function: Function) -> None:
    x = torch.arange(10.0)
    kernel(function, "PPPif")((3,), (256,), x, None, x[4:], 10, 0.5, shared_bytes=64)
    kernel(function, "q")((1, 2, 3), (32, 2), 2**33)
    kernel(function, "q")((0, 2), (32, 2, 1), 1)
    address = x.data_ptr()
    assert function.calls == [
        ((3,), (256, 1, 1), "ours", struct.pack("PPPif", address, 0, address + 16, 10, 0.5), 64),
        ((1, 2, 3), (32, 2, 1), "ours", struct.pack("q", 2**33), 0),
    ]


def test_a_stream_that_is_not_ours_is_met_by_one_that_is(function: Function, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 8, raising=False)
    kernel(function, "i")((1,), (1,), 5)
    assert function.calls[0][2] == "detour of 8"


def test_a_kernel_begins_early_where_its_device_says_so_and_the_stream_is_ours(
    function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    early: list[tuple[Any, ...]] = []
    device: Any = OneDevice()
    begin_early: Any = lambda *launch: early.append(launch)  # noqa: E731
    scale = Kernel(lambda: Ready(function, begin_early), "i", device, "scale", 64)
    scale((1,), (1,), 5)
    device.launches_early = True
    scale((2,), (3,), 6, shared_bytes=8)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 8, raising=False)
    scale((1,), (1,), 7)
    assert early == [((2,), (3, 1, 1), struct.pack("i", 6), 8, 7)]
    assert [call[2:4] for call in function.calls] == [
        ("ours", struct.pack("i", 5)),
        ("detour of 8", struct.pack("i", 7)),
    ]


def test_a_launch_that_the_driver_or_its_binding_refuses_is_a_kernels_error(
    function: Function, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DriverError(Exception):
        pass

    driver = SimpleNamespace(Error=DriverError)
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=driver))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr("headrace.kernels.launch._refusals", refusals.__wrapped__)
    scale = kernel(function, "i")
    for error in (DriverError("invalid argument"), OverflowError("positive overflow")):
        function.refusal = error
        with pytest.raises(KernelError, match=f"scale was not launched.*{error}"):
            scale((2**33,), (1,), 5)


def test_arguments_that_do_not_fit_are_refused(function: Function) -> None:
    x = torch.zeros(3)
    scale = kernel(function, "Pi")
    for arguments, words in (
        ((x,), "takes 2 arguments"),
        ((x, x), "wants a number"),
        ((3, 3), "wants a tensor on cuda:-1, not int"),
        ((x, 2**40), "not launched"),
    ):
        with pytest.raises(KernelError, match=words):
            scale((1,), (1,), *arguments)
    with pytest.raises(KernelError, match="64 bytes of shared memory"):
        scale((1,), (1,), x, 3, shared_bytes=65)
    assert not function.calls


def test_a_rehearsed_launch_is_none_but_what_does_not_fit_is_refused(function: Function) -> None:
    num_made_ready = 0

    def make_ready() -> Ready:
        nonlocal num_made_ready
        num_made_ready += 1
        return Ready(function, None)

    device: Any = OneDevice()
    scale = Kernel(make_ready, "i", device, "scale", 64)
    device.rehearsal = object()
    scale((1,), (1,), 5)
    with pytest.raises(KernelError, match="takes 1 arguments"):
        scale((1,), (1,))
    assert (function.calls, num_made_ready) == ([], 0)
    device.rehearsal = None
    for number in (6, 7):
        scale((1,), (1,), number)
    assert [call[3] for call in function.calls] == [struct.pack("i", 6), struct.pack("i", 7)]
    assert (num_made_ready, scale.num_registers) == (1, 32)


class Loadable(Function):
    """A function of PyCUDA's that notes what is set of it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, int]] = []

    def set_attribute(self, attribute: str, value: int) -> None:
        self.attributes.append((attribute, value))


def test_a_kernel_and_its_early_launch_are_told_of_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    functions: list[Loadable] = []
    early: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def get_function(entry: str) -> Loadable:
        functions.append(Loadable())
        return functions[-1]

    attributes = SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES="most", PREFERRED_SHARED_MEMORY_CARVEOUT="percent")
    driver = SimpleNamespace(Error=ValueError, function_attribute=attributes)
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=driver))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    device = SimpleNamespace(
        index=0,
        arch="sm_90a",
        shared_bytes=1000,
        starts_early=True,
        rehearsal=None,
        entered=nullcontext,
        load=lambda code: SimpleNamespace(get_function=get_function),
    )
    monkeypatch.setattr(launch, "open_device", lambda index: device)
    monkeypatch.setattr(launch, "cubin", lambda target: b"code")
    monkeypatch.setattr(launch, "EarlyLaunch", lambda *given, **named: early.append((given, named)))
    monkeypatch.setattr(launch, "_entries", set())
    where = torch.device("cuda", 0)
    for shared, told, percent in (
        (Shared(512, percent=28), [("most", 512), ("percent", 28)], 28),
        (Shared(512, percent=0), [("most", 512), ("percent", 0)], 0),
        (1000, [("most", 1000)], None),
        (0, [], None),
    ):
        most_bytes = shared.most_bytes if isinstance(shared, Shared) else shared
        scale = load("scale", "scale", "Pi", where, shared_bytes=shared)
        assert functions[-1].attributes == told
        assert early[-1] == ((b"code", "scale", 12), {"shared_bytes": most_bytes, "shared_percent": percent})
        with pytest.raises(KernelError, match=f"for {most_bytes} bytes"):
            scale((1,), (1,), None, 1, shared_bytes=most_bytes + 1)
    with pytest.raises(KernelError, match="wants 1001 bytes of shared memory a block; there are 1000"):
        load("scale", "scale", "Pi", where, shared_bytes=Shared(1001))
