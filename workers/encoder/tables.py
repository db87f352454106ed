"""Which table computes on which device."""

import functools

import torch

from headrace.kernels.encoder_reference import EncoderReference
from headrace.kernels.encoder_table import EncoderOperations
from headrace.kernels.planned_encoder import PlannedEncoder


@functools.cache
def table_for(device: torch.device) -> EncoderOperations:
    """Give a device's table, the same one every time: it has no state but what its kernels keep.

    Raises:
        ConfigurationError: there is no such GPU, or PyCUDA is missing.
    """
    if device.type != "cuda":
        return EncoderReference(device)
    # Not before: a machine without a GPU need not be able to compile for one.
    from headrace.kernels.cuda_encoder import CudaEncoder
    from headrace.kernels.device import open_device

    index = device.index
    if index is None:
        index = torch.cuda.current_device() if torch.cuda.is_available() else 0
    # Says what is missing, before torch does by an assertion of its own.
    open_device(index)
    indexed = torch.device("cuda", index)
    return PlannedEncoder(CudaEncoder(indexed), indexed)
