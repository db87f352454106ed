"""The tensors of a folder with one or many safetensors files, by name, mapped and not read."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open

from headrace.errors import ModelError

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
        if name not in self._files:
            raise ModelError(f"{self._folder}: no tensor {name!r}")
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        if tensor.shape != shape:
            raise ModelError(f"{self._folder}: {name!r} has shape {tuple(tensor.shape)}, not {shape}")
        if tensor.dtype not in _DTYPES:
            raise ModelError(
                f"{self._folder}: {name!r} holds {tensor.dtype}; only plain floating-point weights are read"
            )
        return tensor.to(dtype)


def _paths(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: not an index of safetensors files: {error}") from error
