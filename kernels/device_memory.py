"""Memory of a GPU, allocated through PyCUDA once and for good, as a tensor that torch works on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.kernels.device import Device, open_device


@dataclass(frozen=True, slots=True)
class _Bytes:
    """What torch must know to make a tensor of an allocation, which lives as long as the tensor.

    [1] CUDA Array Interface, version 3, numba.readthedocs.io.
    """

    device: Device
    allocation: Any
    num_bytes: int

    def __del__(self) -> None:
        self.device.free(self.allocation)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (self.num_bytes,),
            "typestr": "|u1",
            "data": (int(self.allocation), False),
            "version": 3,
            "strides": None,
        }


def free_bytes(index: int) -> int:
    """Bytes of a GPU that nobody has, those that torch keeps for later not counted."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(index)[0]


def allocate(index: int, num_bytes: int) -> Tensor:
    """Allocate memory on ``cuda:<index>``: uint8 ``[num_bytes]``, not initialised, aligned to 512 bytes.

    It is not torch's: its allocator neither knows nor frees it.

    Raises:
        ConfigurationError: PyCUDA or the GPU is missing, or there is not so much memory.
    """
    device = open_device(index)
    memory = _Bytes(device, device.allocate(num_bytes), num_bytes)
    return torch.as_tensor(memory, device=torch.device("cuda", index))
