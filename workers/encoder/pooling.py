"""How a folder's vectors are made: the files that sentence-transformers writes beside a model.

``modules.json`` lists the steps: the transformer, a pooling, maybe a dense layer, maybe a normalisation. A folder
without it is pooled as sentence-transformers would: the mean, not normalised.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.errors import ModelError
from headrace.kernels.encoder_table import Activation, EncoderOperations, Pooling
from headrace.kernels.table import Linear
from headrace.workers.engine.checkpoint import Checkpoint
from headrace.workers.engine.models.fields import Fields
from headrace.workers.text.encoder_facts import text_limit

_MODES: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_UNSUPPORTED_MODES = ("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
_DENSE_ACTIVATIONS: dict[str, Activation | None] = {"Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}


@dataclass(frozen=True, slots=True)
class Projection:
    """A dense layer behind the pooling.

    Attributes:
        linear: the product, with or without a bias.
        activation: behind it, None for none.
        width: of its result.
    """

    linear: Linear
    activation: Activation | None
    width: int

    def apply(self, ops: EncoderOperations, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute fp32 ``[num_rows, width]`` from ``x [num_rows, hidden]``, in the model's dtype."""
        x = x.to(dtype)
        if self.activation is None:
            return ops.linear(x, self.linear).float()
        return ops.activate(ops.product(x, self.linear), self.linear, self.activation).float()


@dataclass(frozen=True, slots=True)
class Sentences:
    """How rows become vectors.

    Attributes:
        pooling: of a row's hidden states.
        projections: behind it, in their order.
        normalise: divide the vector by its length, at the end.
        max_tokens: to which texts are cut, None where the folder does not say.
    """

    pooling: Pooling = "mean"
    projections: tuple[Projection, ...] = ()
    normalise: bool = False
    max_tokens: int | None = None


def load_sentences(folder: Path, hidden: int, operations: EncoderOperations, dtype: torch.dtype) -> Sentences:
    """Read a folder's files of sentence-transformers.

    Args:
        folder: of the model.
        hidden: width of its hidden states.
        operations: the table to compute with.
        dtype: of weights.

    Raises:
        ModelError: a file is missing or damaged, or asks for something that would be computed wrongly.
    """
    path = folder / "modules.json"
    if not path.exists():
        return Sentences(max_tokens=text_limit(folder))
    pooling: Pooling | None = None
    projections: list[Projection] = []
    normalise = False
    for module in _read(path, list):
        kind, place = _module(module, path)
        if kind == "Transformer" and not place and pooling is None:
            continue
        if kind == "Pooling" and pooling is None:
            pooling = read_pooling(folder / place / "config.json", hidden)
        elif kind == "Dense" and pooling is not None and not normalise:
            width = projections[-1].width if projections else hidden
            projections.append(_load_projection(folder / place, width, operations, dtype))
        elif kind == "Normalize" and pooling is not None:
            normalise = True
        else:
            raise ModelError(f"{path}: a module {kind} in this place is not supported")
    if pooling is None:
        raise ModelError(f"{path}: there is no pooling among the modules")
    return Sentences(pooling, tuple(projections), normalise, text_limit(folder))


def read_pooling(path: Path, hidden: int) -> Pooling:
    """Read one pooling's config.json, in the old form (a field a mode) or the new one.

    Raises:
        ModelError: it is damaged, or pools in a way, or in several ways, that are not supported.
    """
    fields = Fields(_read(path, dict), str(path))
    fields.ignore("include_prompt")
    width = fields.find("word_embedding_dimension", int) or fields.find("embedding_dimension", int) or hidden
    if width != hidden:
        raise ModelError(f"{path}: pools vectors of {width} numbers, but the model's have {hidden}")
    for name in _UNSUPPORTED_MODES:
        fields.only(name, False)
    chosen = [mode for name, mode in _MODES.items() if fields.get(name, bool, False)]
    named = fields.find("pooling_mode", str)
    if named is not None:
        modes = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
        if named not in modes:
            raise fields.refusal("pooling_mode", named)
        chosen = [mode for mode in _MODES.values() if mode == modes[named]]
    fields.refuse_unknown()
    if len(chosen) != 1:
        raise ModelError(f"{path}: {len(chosen)} modes of pooling are on; exactly one is supported")
    return chosen[0]


def _load_projection(folder: Path, width: int, operations: EncoderOperations, dtype: torch.dtype) -> Projection:
    path = folder / "config.json"
    fields = Fields(_read(path, dict), str(path))
    if (inputs := fields.positive("in_features", int)) != width:
        raise ModelError(f"{path}: takes vectors of {inputs} numbers, but is given {width}")
    outputs = fields.positive("out_features", int)
    named = fields.get("activation_function", str, "torch.nn.modules.activation.Tanh").rpartition(".")[2]
    if named not in _DENSE_ACTIVATIONS:
        raise fields.refusal("activation_function", named)
    has_bias = fields.get("bias", bool, True)
    for name in ("module_input_name", "module_output_name"):
        fields.only(name, "sentence_embedding")
    fields.refuse_unknown()
    with Checkpoint(folder) as checkpoint:
        weight = checkpoint.tensor("linear.weight", (outputs, inputs), dtype)
        bias = checkpoint.tensor("linear.bias", (outputs,), dtype) if has_bias else None
        linear = operations.pack_linear(weight, None if bias is None else operations.hold(bias))
    return Projection(linear, _DENSE_ACTIVATIONS[named], outputs)


def _module(module: Any, path: Path) -> tuple[str, str]:
    if not isinstance(module, dict) or not isinstance(module.get("type"), str):
        raise ModelError(f"{path}: not a list of modules")
    return module["type"].rpartition(".")[2], str(module.get("path", ""))


def _read(path: Path, kind: type[Any]) -> Any:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: {error}") from error
    if not isinstance(content, kind):
        raise ModelError(f"{path}: not a JSON {'object' if kind is dict else 'list'}")
    return content
