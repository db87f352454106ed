"""An encoder for a device and a precision, put together from its parts."""

import logging
from pathlib import Path
from typing import Literal

import torch

from headrace.errors import ConfigurationError
from headrace.kernels.int8_linear import Int8Packer
from headrace.workers.encoder.loading import LoadedEncoder, load_encoder
from headrace.workers.encoder.precision import compare
from headrace.workers.encoder.tables import table_for

logger = logging.getLogger("headrace.workers.encoder")

Precision = Literal["float32", "bfloat16", "float16", "int8"]


def load_for(folder: Path, device: torch.device, precision: Precision) -> LoadedEncoder:
    """Load a folder for a device.

    In int8 the products of the transformer blocks are computed in 8 bits, all else in float32. The model is loaded
    twice then, for the loss of accuracy is measured on sample texts, and logged.

    Args:
        folder: of the model.
        device: where to compute.
        precision: of weights and activations.

    Raises:
        ModelError: the folder cannot be served.
        ConfigurationError: the device does not compute in this precision.
    """
    if precision == "float16" and device.type == "cpu":
        raise ConfigurationError("float16 needs a GPU: its range is too small for what a CPU computes in it")
    table = table_for(device)
    if precision != "int8":
        return load_encoder(folder, table, getattr(torch, precision))
    if device.type != "cpu":
        raise ConfigurationError(f"int8 is for encoders on a CPU, not on {device}; set dtype to float16 or bfloat16")
    exact = load_encoder(folder, table, torch.float32)
    quantised = load_encoder(folder, table, torch.float32, block_packer=Int8Packer(table))
    logger.info("int8: %s", compare(folder, exact, quantised))
    return quantised
