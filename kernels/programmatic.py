"""Graphs whose kernels begin before the one before them has ended: programmatic dependent launch, in graphs of torch's.

A kernel of ours waits for the one before it (``wait_for_earlier_kernels`` in ``cuda/common.cuh``) after it has done
what does not depend on it, and lets the next one start at once. Between two such kernels an edge of a graph can say
so; torch and PyCUDA have no word for it, so the driver is asked directly. An edge into anybody else's kernel stays as
it is, for that one does not wait.

[1] CUDA C++ Programming Guide, section "Programmatic Dependent Launch and Synchronization".
"""

import ctypes
from collections.abc import Callable

from headrace.errors import KernelError

_PROGRAMMATIC_PORT = 1
_PROGRAMMATIC_TYPE = 1
_KERNEL_NODE = 0


class _EdgeData(ctypes.Structure):
    _fields_ = (
        ("from_port", ctypes.c_ubyte),
        ("to_port", ctypes.c_ubyte),
        ("type", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte * 5),
    )


class _KernelNode(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("grid_and_block", ctypes.c_uint * 6),
        ("shared_bytes", ctypes.c_uint),
        ("params", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


def make_programmatic(raw_graph: int, waits: Callable[[str], bool]) -> int:
    """Turn edges between kernels into programmatic ones, where the later kernel waits by itself.

    Args:
        raw_graph: ``torch.cuda.CUDAGraph.raw_cuda_graph()``, before the graph is instantiated.
        waits: told a kernel's name, says whether it waits.

    Returns:
        How many edges were turned.

    Raises:
        KernelError: the driver refused; the graph may have lost edges and must not be used.
    """
    driver, graph, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(raw_graph), ctypes.c_size_t(0)
    _call(driver, "cuGraphGetEdges_v2", graph, None, None, None, ctypes.byref(count))
    nodes = ctypes.c_void_p * count.value
    sources, targets, edges = nodes(), nodes(), (_EdgeData * count.value)()
    _call(driver, "cuGraphGetEdges_v2", graph, sources, targets, edges, ctypes.byref(count))
    turned = [
        (sources[index], targets[index])
        for index in range(count.value)
        if _kernel_name(driver, sources[index]) and waits(_kernel_name(driver, targets[index]))
    ]
    if not turned:
        return 0
    pairs = ctypes.c_void_p * len(turned)
    first, second = pairs(*(source for source, _ in turned)), pairs(*(target for _, target in turned))
    plain = (_EdgeData * len(turned))()
    _call(driver, "cuGraphRemoveDependencies_v2", graph, first, second, plain, ctypes.c_size_t(len(turned)))
    for edge in plain:
        edge.from_port, edge.type = _PROGRAMMATIC_PORT, _PROGRAMMATIC_TYPE
    _call(driver, "cuGraphAddDependencies_v2", graph, first, second, plain, ctypes.c_size_t(len(turned)))
    return len(turned)


def _kernel_name(driver: ctypes.CDLL, node: int | None) -> str:
    """The name of a node's kernel; "" for other nodes."""
    kind = ctypes.c_int(-1)
    _call(driver, "cuGraphNodeGetType", ctypes.c_void_p(node), ctypes.byref(kind))
    if kind.value != _KERNEL_NODE:
        return ""
    params, name = _KernelNode(), ctypes.c_char_p()
    _call(driver, "cuGraphKernelNodeGetParams_v2", ctypes.c_void_p(node), ctypes.byref(params))
    if params.function:
        _call(driver, "cuFuncGetName", ctypes.byref(name), ctypes.c_void_p(params.function))
    else:
        _call(driver, "cuKernelGetName", ctypes.byref(name), ctypes.c_void_p(params.kernel))
    return (name.value or b"?").decode()


def _call(driver: ctypes.CDLL, name: str, *arguments: object) -> None:
    status = getattr(driver, name)(*arguments)
    if status:
        raise KernelError(f"{name} failed with CUDA error {status}")
