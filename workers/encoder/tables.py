"""Which table computes on which device."""

import functools

import torch

from headrace.kernels.encoder_reference import EncoderReference
from headrace.kernels.encoder_table import EncoderOperations


@functools.cache
def table_for(device: torch.device) -> EncoderOperations:
    """Give a device's table, the same one every time: it has no state but what its kernels keep."""
    return EncoderReference(device)
