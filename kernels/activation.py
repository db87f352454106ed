"""SwiGLU, GeGLU and GELU with a bias: ``cuda/activation.cu``."""

import functools
from typing import Literal

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.checks import element_type, require
from headrace.kernels.device import open_device
from headrace.kernels.launch import Extent, Kernel, load
from headrace.kernels.rows import vector
from headrace.kernels.stretches import layers, stretch, stretch_flat

Gelu = Literal["erf", "tanh"]
Layout = Literal["halves", "alternating"]

_SILU = 0
_GELU: dict[Gelu, int] = {"erf": 1, "tanh": 2}
_PLAIN, _BIASED = 0, 3
_WIDEST, _THREADS_A_SM = 16, 2048  # bytes of a vector; what a multiprocessor runs at once
_NUM_SIZES = 1024  # numbers of rows whose launches are remembered
_GATED: dict[Layout, int] = {"halves": 1, "alternating": 2}


def swiglu(gate_up: Tensor, *, layout: Layout = "halves", out: Tensor | None = None) -> Tensor:
    """Compute ``silu(gate) * up``.

    Args:
        gate_up: fp32, fp16 or bf16 ``[num_tokens, 2 * inner]``, contiguous.
        layout: ``halves``: gate before up; ``alternating``: g0, u0, g1, u1, …, which shards at any even column.
        out: where to. Default: a new tensor.

    Returns:
        ``[num_tokens, inner]``.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    return _gated(gate_up, _SILU, layout, out)


def geglu(gate_up: Tensor, *, gelu: Gelu = "tanh", layout: Layout = "halves", out: Tensor | None = None) -> Tensor:
    """Compute ``gelu(gate) * up``; arguments as ``swiglu``, and which form of GELU is meant."""
    return _gated(gate_up, _GELU[gelu], layout, out)


def bias_gelu(x: Tensor, bias: Tensor | None, *, gelu: Gelu = "erf", out: Tensor | None = None) -> Tensor:
    """Compute ``gelu(x + bias)``.

    Args:
        x: fp32, fp16 or bf16 ``[num_tokens, inner]``, contiguous.
        bias: ``[inner]``, or None.
        gelu: which form.
        out: where to; may be x. Default: a new tensor.

    Raises:
        KernelError: shapes, dtypes or devices do not fit.
    """
    out = torch.empty_like(x) if out is None else out
    require(x, "x", x.shape, x.dtype)
    require(bias, "bias", (x.shape[1],), x.dtype)
    _launch(out, x, bias, _GELU[gelu], _PLAIN if bias is None else _BIASED)
    return out


def _gated(gate_up: Tensor, function: int, layout: Layout, out: Tensor | None) -> Tensor:
    num_tokens, both = gate_up.shape
    if both % 2:
        raise KernelError(f"gate_up has {both} columns, which is not twice anything")
    out = gate_up.new_empty(num_tokens, both // 2) if out is None else out
    require(gate_up, "gate_up", gate_up.shape, gate_up.dtype)
    _launch(out, gate_up, None, function, _GATED[layout])
    return out


def _launch(out: Tensor, x: Tensor, bias: Tensor | None, function: int, form: int) -> None:
    num_rows, width = x.shape[0], out.shape[1]
    require(out, "out", (num_rows, x.shape[1] // 2 if form in _GATED.values() else x.shape[1]), x.dtype)
    element = element_type(x, "x"), x.element_size()
    kernel, grid, block = _planned(x.get_device(), *element, num_rows, width, function, form)
    kernel(grid, block, out, x, bias, num_rows, width)


@functools.lru_cache(_NUM_SIZES)
def _planned(
    index: int, element: str, element_bytes: int, num_rows: int, width: int, function: int, form: int
) -> tuple[Kernel, Extent, Extent]:
    """Kernel, grid and block: a step asks once a layer."""
    num_sms = open_device(index).num_sms
    if form == _PLAIN:
        return _planned_flat(index, element, element_bytes, num_rows * width, function)
    vec = vector(width, element_bytes)
    if vec * element_bytes == _WIDEST and num_rows * (2 * width // vec) <= num_sms * _THREADS_A_SM:
        vec //= 2  # where narrower vectors still leave threads idle, their shorter program counts
    shape = stretch(width // vec, num_rows, num_sms)
    kernel = _kernel(index, element, vec, shape.vecs, shape.threads, function, form)
    return kernel, (shape.num_stretches, *layers(num_rows)), (shape.threads,)


def _planned_flat(
    index: int, element: str, element_bytes: int, num_elements: int, function: int
) -> tuple[Kernel, Extent, Extent]:
    """Of x alone: rows mean nothing."""
    num_sms, vec = open_device(index).num_sms, vector(num_elements, element_bytes)
    if vec * element_bytes == _WIDEST and 4 * num_elements // vec <= num_sms * _THREADS_A_SM:
        vec //= 2
    shape = stretch_flat(num_elements // vec, num_sms)
    kernel = _kernel(index, element, vec, shape.vecs, shape.threads, function, _PLAIN)
    return kernel, (shape.num_stretches,), (shape.threads,)


@functools.cache
def _kernel(index: int, element: str, vec: int, vecs: int, threads: int, function: int, form: int) -> Kernel:
    return load(
        "activation",
        "activation",
        "PPPqi",
        torch.device("cuda", index),
        DTYPE=element,
        VEC=vec,
        VECS=vecs,
        THREADS=threads,
        FUNCTION=function,
        FORM=form,
    )
