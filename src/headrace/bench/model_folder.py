"""A model's folder with random weights and a made-up tokenizer, as large as the real one's.

The file is written tensor by tensor, since the model in whole need not fit the host's memory.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.kernels.reference import ReferenceOperations
from headrace.kernels.table import Linear
from headrace.testing.full_shapes import loader
from headrace.testing.made_up_tokenizer import EOS_ID, made_up_tokenizer
from headrace.testing.state_dict import RandomWeights

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class _Names:
    """A checkpoint that has every tensor, and notes which are asked for."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __contains__(self, name: str) -> bool:
        return True

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self.shapes[name] = shape
        return torch.empty(shape, dtype=dtype, device="meta")


class _Nowhere(ReferenceOperations):
    """A table for a model that will never compute."""

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return Linear(weight, bias)


def write_model(folder: Path, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
    """Write a folder that workers can serve.

    Args:
        folder: exists; files of the same names are replaced.
        config: as config.json says it, but for the ends of sequence.
        device: where the weights are drawn.
        dtype: of the weights.
    """
    names = _Names()
    loader(config, names)(_Nowhere(), dtype)
    write_model_without_weights(folder, config)
    header, end = {}, 0
    for name, shape in names.shapes.items():
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": (end, end + num_bytes)}
        end += num_bytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    weights = RandomWeights(device)
    largest = max(torch.Size(shape).numel() for shape in names.shapes.values()) * dtype.itemsize
    # Copies to page-locked memory are ten times as fast.
    room = torch.empty(largest, dtype=torch.uint8, pin_memory=device.type == "cuda")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, shape in names.shapes.items():
            drawn = weights.tensor(name, shape, dtype).view(-1).view(torch.uint8)
            file.write(room[: len(drawn)].copy_(drawn).numpy().data)


def write_model_without_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Write what a fleet reads of a model whose engine is a stand-in: configuration and tokenizer."""
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": EOS_ID}))
    made_up_tokenizer(config["vocab_size"]).save(str(folder / "tokenizer.json"), pretty=False)
