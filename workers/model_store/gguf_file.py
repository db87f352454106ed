"""A GGUF file, read with types: what it says about itself, and its tensors.

GGUF is one little-endian file: key-value metadata, then tensor descriptions, then tensors, memory-mapped here. See
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md for the format and the standard keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
import numpy.typing as npt
from gguf.gguf_reader import READER_SUPPORTED_VERSIONS

from headrace.errors import ModelError

_MAGIC = b"GGUF"

T = TypeVar("T", str, int, float, bool)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor as the file stores it.

    Attributes:
        name: in llama.cpp's naming.
        shape: logical shape, rows first: (out_features, in_features) for a matrix, (n,) for a vector.
        rows: the stored bytes, shape (rows, bytes a row), dtype uint8; a vector is one row.
        quantisation: the name of the stored type, such as "Q4_1".
    """

    name: str
    shape: tuple[int, ...]
    rows: npt.NDArray[np.uint8]
    quantisation: str

    @property
    def num_values(self) -> int:
        """Number of values, the product of the shape."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    def dequantise(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the given rows in float32, shape (len(rows), values a row), in the order given.

        Raises:
            ModelError: the stored type is one that the gguf package cannot read.
        """
        stored = gguf.GGMLQuantizationType[self.quantisation]
        try:
            values = gguf.quants.dequantize(np.ascontiguousarray(self.rows[rows]), stored)
        except NotImplementedError as error:
            raise ModelError(f"tensor {self.name} is stored as {self.quantisation}, which cannot be read") from error
        return np.ascontiguousarray(values, dtype=np.float32)


def _check_head(path: Path) -> None:
    """Look at the first bytes, the magic and the version.

    Raises:
        ModelError: no GGUF file begins with them, or none of a version that can be read.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise ModelError(f"{path} is empty, or was damaged: a GGUF file is expected")
    if head[:4] != _MAGIC[: len(head)]:
        raise ModelError(f"{path} is not a GGUF file: those begin with {_MAGIC.decode()}")
    # Of a big-endian file the upper half; the reader knows those.
    version = int.from_bytes(head[4:], "little")
    if 0 < version < 1 << 16 and version not in READER_SUPPORTED_VERSIONS:
        known = " and ".join(str(number) for number in READER_SUPPORTED_VERSIONS)
        raise ModelError(f"{path} is of GGUF version {version}; versions {known} can be read")


class GgufFile:
    """A GGUF file's metadata, by key and type, and its tensors."""

    def __init__(self, path: Path) -> None:
        """Open and map the file.

        Raises:
            ModelError: it is not a GGUF file, or a damaged one.
        """
        self.path = path
        try:
            _check_head(path)
            self._reader: Any = gguf.GGUFReader(path)
        except (ValueError, IndexError, KeyError, OverflowError) as error:
            # What the reader says is about its arrays.
            size_bytes = path.stat().st_size
            raise ModelError(
                f"{path} is damaged or cut off: its {size_bytes} bytes do not hold what it announces; fetch it again"
            ) from error
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error}") from error

    def metadata_keys(self) -> frozenset[str]:
        """Return the keys of the metadata."""
        return frozenset(self._reader.fields)

    def find(self, key: str, kind: type[T]) -> T | None:
        """Return the value of ``key``, or None where the file does not have it.

        Raises:
            ModelError: the value is of another type.
        """
        field = self._reader.fields.get(key)
        if field is None:
            return None
        value = field.contents()
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise ModelError(f"{self.path}: {key} is {type(value).__name__}, expected {kind.__name__}")
        return value

    def get(self, key: str, kind: type[T]) -> T:
        """Return the value of ``key``.

        Raises:
            ModelError: the file does not have it, or it is of another type.
        """
        value = self.find(key, kind)
        if value is None:
            raise ModelError(f"{self.path} has no {key}")
        return value

    def find_list(self, key: str, kind: type[T]) -> list[T] | None:
        """Return the list under ``key``, or None where the file does not have it.

        Raises:
            ModelError: it is not a list, or not of that type.
        """
        field = self._reader.fields.get(key)
        if field is None:
            return None
        values = field.contents()
        if not isinstance(values, list) or (values and type(values[0]) is not kind):
            raise ModelError(f"{self.path}: {key} is not a list of {kind.__name__}")
        return values

    def tensors(self) -> Iterator[GgufTensor]:
        """Yield the tensors, in the file's order; none of them is read yet."""
        for tensor in self._reader.tensors:
            # GGUF counts dimensions from the fastest-varying one.
            shape = tuple(int(extent) for extent in reversed(tensor.shape))
            num_rows = shape[0] if len(shape) > 1 else 1
            rows = tensor.data.view(np.uint8).reshape(num_rows, -1)
            yield GgufTensor(tensor.name, shape, rows, tensor.tensor_type.name)
