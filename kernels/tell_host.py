"""A step's tokens on their way to the host, as a kernel that a graph may hold: ``cuda/tell_host.cu``."""

import functools

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import require
from headrace.kernels.launch import Kernel, load

_THREADS = 256


def tell_host(told: Tensor, turn: Tensor, token_ids: Tensor, valid: Tensor) -> None:
    """Write tokens into the host's memory; they are there when an event that is recorded behind this has happened.

    Args:
        told: int32 ``[num_turns, most_rows]`` in page-locked memory of the host; one turn is written, -1 where a token
            is not valid.
        turn: int32 ``[1]``, which; it goes on to the next, and after the last to the first.
        token_ids: int64 ``[num_rows]``, below 2^31.
        valid: bool ``[num_rows]``.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    (num_rows,), (num_turns, most_rows) = token_ids.shape, told.shape
    if num_rows > most_rows:
        raise KernelError(f"{num_rows} tokens where there is room for {most_rows}")
    require(told, "told", (num_turns, most_rows), torch.int32, alignment=4)
    require(turn, "turn", (1,), torch.int32, alignment=4)
    require(token_ids, "token_ids", (num_rows,), torch.int64, alignment=8)
    require(valid, "valid", (num_rows,), torch.bool, alignment=1)
    kernel = _kernel(token_ids.device)
    kernel((1,), (_THREADS,), told, turn, token_ids, valid, num_rows, most_rows, num_turns)


@functools.cache
def _kernel(device: torch.device) -> Kernel:
    return load("tell_host", "tell_host", "PPPPiii", device, THREADS=_THREADS)
