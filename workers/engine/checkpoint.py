"""The tensors of a folder with one or many safetensors files, by name: mapped and not read, or brought to a GPU."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open

from headrace.errors import ModelError
from headrace.workers.engine.file_reader import FileReader

# Whatever is smaller, or no float, has a meaning that only scales or a quantiser's settings tell.
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Tensors(Protocol):
    """Weights by name, wherever they come from."""

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor."""

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Give one tensor.

        Raises:
            ModelError: there is no such tensor, or it has another shape.
        """


class Checkpoint:
    """Open files of one model; a context manager.

    Args:
        folder: with ``model.safetensors``, or ``model.safetensors.index.json`` and the files it names.

    Raises:
        ModelError: a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}  # by tensor name
        try:
            for path in _paths(folder):
                file = self._stack.enter_context(safe_open(path, framework="pt"))
                self._files.update(dict.fromkeys(file.keys(), file))
        except (OSError, SafetensorError) as error:
            self._stack.close()
            raise ModelError(f"{folder}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def names(self) -> frozenset[str]:
        """Of all tensors."""
        return frozenset(self._files)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Give one tensor; where the dtype is the file's, its pages are read when they are used.

        Raises:
            ModelError: there is no such tensor, it has another shape, or it holds quantised numbers.
        """
        return self._checked(name, shape).to(dtype)

    def _checked(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor as it is mapped."""
        if name not in self._files:
            raise ModelError(f"{self._folder}: no tensor {name!r}")
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        if tensor.shape != shape:
            raise ModelError(f"{self._folder}: {name!r} has shape {tuple(tensor.shape)}, not {shape}")
        if tensor.dtype not in _DTYPES:
            raise ModelError(
                f"{self._folder}: {name!r} holds {tensor.dtype}; only plain floating-point weights are read"
            )
        return tensor


class DeviceCheckpoint(Checkpoint):
    """A checkpoint whose tensors come to a GPU, on the current stream, without a detour through the host's copies.

    Args:
        folder: as above.
        device: the GPU; without an index, torch's current one.

    Raises:
        ModelError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__(folder)
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        self._reader = self._stack.enter_context(FileReader(self._device))
        self._places: dict[str, tuple[int, int]] = {}  # a file's descriptor, and where in it a tensor begins
        try:
            for path in _paths(folder):
                self._open(path)
        except OSError as error:
            self._stack.close()
            raise ModelError(f"{folder}: {error}") from error

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Give one tensor on the GPU; raises as ``Checkpoint.tensor`` does, and where a file ends too soon."""
        mapped = self._checked(name, shape)
        brought = torch.empty(shape, dtype=mapped.dtype, device=self._device)
        try:
            self._reader.read(*self._places[name], brought.view(-1).view(torch.uint8))
        except OSError as error:
            raise ModelError(f"{self._folder}: {name!r}: {error}") from error
        return brought.to(dtype)

    def _open(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY)
        self._stack.callback(os.close, file)
        # safetensors has checked the header by now.
        with path.open("rb") as header:
            num_bytes = int.from_bytes(header.read(8), "little")
            tensors = json.loads(header.read(num_bytes))
        for name, fields in tensors.items():
            if name != "__metadata__":
                self._places[name] = file, 8 + num_bytes + fields["data_offsets"][0]


def _paths(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not an index of safetensors files: {error}") from error
