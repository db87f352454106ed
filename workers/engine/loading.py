"""From a model folder to a model that can run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headrace.errors import ModelError
from headrace.kernels.table import Operations
from headrace.workers.engine.checkpoint import Checkpoint, DeviceCheckpoint
from headrace.workers.engine.models.families import FAMILIES
from headrace.workers.engine.models.model import Model
from headrace.workers.model_store.json_file import read_json, read_json_if_there


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and what its folder says about its use.

    Attributes:
        model: ready to run.
        eos_ids: token ids that end a text, possibly none.
    """

    model: Model
    eos_ids: frozenset[int]


def load(folder: Path, operations: Operations, dtype: torch.dtype, device: torch.device | None = None) -> LoadedModel:
    """Load a folder in Hugging Face's layout: config.json, safetensors, maybe generation_config.json.

    Args:
        folder: of the model.
        operations: the table to compute with.
        dtype: of weights and activations, whatever the files hold.
        device: a GPU that weights are brought to as they are read; None: they stay where files are mapped.

    Raises:
        ModelError: a file is missing or damaged, the family is not supported, or the configuration asks for
            something that would be computed wrongly.
    """
    config = read_json(folder / "config.json")
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else architectures
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ModelError(f"{folder}: architecture {architecture!r} is not supported; supported are: {known}")
    build = FAMILIES[architecture]
    with Checkpoint(folder) if device is None else DeviceCheckpoint(folder, device) as checkpoint:
        return LoadedModel(build(config, checkpoint, operations, dtype), _eos_ids(folder, config))


def _eos_ids(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    eos = read_json_if_there(folder / "generation_config.json").get("eos_token_id")
    if eos is None:
        eos = config.get("eos_token_id")
    if eos is None:
        return frozenset()
    ids = eos if isinstance(eos, list) else [eos]
    if not all(isinstance(token_id, int) for token_id in ids):
        raise ModelError(f"{folder}: eos_token_id {eos!r} is neither a token id nor a list of them")
    return frozenset(ids)
