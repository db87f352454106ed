"""The weights of a GGUF file, as one float32 safetensors file.

Tensors are dequantised in blocks of rows and written as they come, so the memory needed does not grow with the model.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.errors import ModelError
from headrace.workers.model_store.gguf_file import GgufFile, GgufTensor
from headrace.workers.model_store.gguf_rope import ROPE_FACTORS
from headrace.workers.model_store.gguf_shape import Shape
from headrace.workers.model_store.gguf_tensors import ExpectedTensor, expected_tensors

_BLOCK_VALUES = 8 << 20
_FLOAT32_BYTES = 4


def weights_bytes(file: GgufFile) -> int:
    """Return the size of all weights in float32, in bytes."""
    return sum(tensor.num_values for tensor in _weights(file)) * _FLOAT32_BYTES


def write_weights(
    file: GgufFile, shape: Shape, path: Path, metadata: dict[str, str], advance: Callable[[int], None]
) -> None:
    """Write every weight of ``file`` into the safetensors file ``path``.

    Args:
        file: the source.
        shape: the model's shape, against which names and shapes are checked.
        path: the safetensors file to make.
        metadata: goes into the safetensors header.
        advance: called with the number of bytes written since its last call.

    Raises:
        ModelError: a tensor is missing, unknown, of a wrong shape, or stored in a type that cannot be read.
    """
    expected = expected_tensors(shape)
    tensors = list(_weights(file))
    _check(file, expected, tensors)
    with path.open("wb") as output:
        output.write(_header(expected, tensors, metadata))
        for tensor in tensors:
            for values in _blocks(tensor, expected[tensor.name], shape.head_dim):
                output.write(values.data)
                advance(values.nbytes)


def _weights(file: GgufFile) -> Iterator[GgufTensor]:
    # The rotations' factors are part of the shape, and go into config.json.
    return (tensor for tensor in file.tensors() if tensor.name != ROPE_FACTORS)


def _check(file: GgufFile, expected: Mapping[str, ExpectedTensor], tensors: list[GgufTensor]) -> None:
    present = {tensor.name for tensor in tensors}
    if unknown := sorted(present - expected.keys()):
        raise ModelError(f"{file.path} has tensors of unknown meaning: {', '.join(unknown[:5])}")
    if missing := sorted(expected.keys() - present):
        raise ModelError(f"{file.path} lacks tensors: {', '.join(missing[:5])}")
    for tensor in tensors:
        shape = expected[tensor.name].shape
        if tensor.shape != shape:
            raise ModelError(f"{file.path}: {tensor.name} has shape {tensor.shape}, expected {shape}")


def _header(expected: Mapping[str, ExpectedTensor], tensors: list[GgufTensor], metadata: dict[str, str]) -> bytes:
    """Make a safetensors header: its length in 8 bytes, then JSON, padded so that the data begin aligned."""
    fields: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_values * _FLOAT32_BYTES
        result = expected[tensor.name]
        fields[result.name] = {"dtype": "F32", "shape": result.result_shape, "data_offsets": (offset, end)}
        offset = end
    encoded = json.dumps(fields, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def _blocks(tensor: GgufTensor, expected: ExpectedTensor, head_dim: int) -> Iterator[npt.NDArray[np.float32]]:
    order = np.arange(tensor.rows.shape[0], dtype=np.int64)
    if expected.layout == "transposed":
        # Its first row is made of all rows' first values, so it is dequantised whole.
        yield np.ascontiguousarray(tensor.dequantise(order).T)
        return
    if expected.layout == "pairs":
        # Where one has rows (head, pair, half), the other has (head, half, pair). Rows are quantised each for itself,
        # so they are reordered as stored, before they grow to float32.
        order = order.reshape(-1, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    rows_per_block = max(1, _BLOCK_VALUES * len(order) // tensor.num_values)
    for index in range(math.ceil(len(order) / rows_per_block)):
        yield tensor.dequantise(order[index * rows_per_block : (index + 1) * rows_per_block])
