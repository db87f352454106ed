"""Somebody's own transformers model, computed by our encoder: what ``headrace.accelerate`` gives back.

The accelerated model is an instance of the original's class with another forward pass, so that whatever asks for its
configuration, its device or its class finds what it knows: pipelines, sentence-transformers, ``save_pretrained``.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from headrace.errors import ConfigurationError, ModelError
from headrace.workers.encoder.families import ARCHITECTURES, FAMILIES
from headrace.workers.encoder.family import TASKS
from headrace.workers.encoder.loading import Encoder, build_encoder
from headrace.workers.encoder.padding import pack_padded
from headrace.workers.encoder.plug_in_outputs import make_output
from headrace.workers.encoder.tables import table_for

M = TypeVar("M", bound=torch.nn.Module)

_ARCHITECTURES = {name for name, (_, task) in ARCHITECTURES.items() if task != "ForPreTraining"}


class _ModuleTensors:
    """A checkpoint over a module's weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.tensors: dict[str, Tensor] = dict(model.state_dict())

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Give one tensor.

        Raises:
            ModelError: there is no such tensor, or it has another shape.
        """
        found = self.tensors.get(name)
        if found is None or found.shape != shape:
            raise ModelError(f"the model has no tensor {name!r} of shape {shape}")
        return found.detach().to(dtype)


class AcceleratedForward:
    """The forward pass, mixed into a class of transformers."""

    _headrace: Encoder

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Compute as transformers does, but for nothing that the mask hides.

        Args:
            input_ids: integers ``[batch, length]``.
            attention_mask: ``[batch, length]``, 0 where a token is padding; None where none is.
            token_type_ids: integers ``[batch, length]``; None where all are 0.
            position_ids: integers ``[batch, length]`` or ``[1, length]``; None for those that transformers takes.
            output_attentions: give attentions; None for what the configuration says.
            output_hidden_states: give hidden states; None for what the configuration says.
            return_dict: give an output object and no tuple; None for what the configuration says.
            others: must be None or False: labels, embeddings instead of tokens, caches.

        Returns:
            The original's output class, without gradients. What belongs to padding is 0.

        Raises:
            TypeError: an argument is not supported.
            ValueError: a tensor has a shape that does not fit, or a row is too long.
        """
        for name, value in others.items():
            if value is not None and value is not False:
                raise TypeError(f"a model accelerated by headrace does not take {name}; use the original model for it")
        if input_ids is None:
            raise TypeError("a model accelerated by headrace needs input_ids")
        config: Any = self.config  # type: ignore[attr-defined]
        packed = pack_padded(self._headrace, input_ids, attention_mask, token_type_ids, position_ids)
        output = make_output(
            self._headrace,
            packed,
            attentions=config.output_attentions if output_attentions is None else output_attentions,
            hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )
        wants_object = config.return_dict if return_dict is None else return_dict
        return output if wants_object else output.to_tuple()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode.

        Raises:
            ConfigurationError: training is asked for.
        """
        if mode:
            raise ConfigurationError("a model accelerated by headrace cannot be trained; train the original model")
        return self

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Accept a move to where the model is already, as frameworks ask for it before every call."""
        probe = torch.empty(0, dtype=self.dtype, device=self.device)  # type: ignore[attr-defined]
        moved = function(probe)
        if moved.device != probe.device or moved.dtype != probe.dtype:
            raise ConfigurationError(
                f"a model accelerated by headrace stays on {probe.device} in {probe.dtype}; "
                "move or convert the original model, and accelerate it then"
            )
        return self


def accelerate_module(model: M) -> M:
    """Make an accelerated model of a transformers encoder; see ``headrace.accelerate``."""
    kind = type(model)
    if issubclass(kind, AcceleratedForward):
        return model
    if kind.__name__ not in _ARCHITECTURES or not kind.__module__.startswith("transformers.models."):
        names = ", ".join(family.class_name for family in FAMILIES)
        heads = ", ".join(task for task in TASKS if task != "ForPreTraining")
        raise ConfigurationError(
            f"headrace.accelerate does not know {kind.__module__}.{kind.__qualname__}; it takes transformers' classes "
            f"{names}, each with one of {heads} behind it (MiniLM is a Bert)"
        )
    if model.training:
        raise ConfigurationError("the model is in training mode; call model.eval() before headrace.accelerate(model)")
    devices = {parameter.device for parameter in model.parameters()}
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(devices) != 1 or len(dtypes) != 1:
        raise ConfigurationError(
            f"the model is spread over {len(devices)} devices and {len(dtypes)} dtypes; one is needed"
        )
    (device,), (dtype,) = devices, dtypes
    if dtype not in (torch.float32, torch.bfloat16) and not (dtype == torch.float16 and device.type == "cuda"):
        raise ConfigurationError(f"the model is in {dtype} on {device}; convert it to float32 or bfloat16")
    tensors = _ModuleTensors(model)
    config = {**model.config.to_dict(), "architectures": [kind.__name__]}  # type: ignore[operator, union-attr]
    encoder = build_encoder(config, tensors, tensors.tensors, table_for(device), dtype)
    accelerated = copy.copy(model)
    accelerated.__class__ = _accelerated(kind)  # type: ignore[arg-type]
    object.__setattr__(accelerated, "_headrace", encoder)
    return accelerated


@functools.cache
def _accelerated(kind: type[Any]) -> type[Any]:
    """Make the class, which keeps its name: pipelines and checkpoints go by it."""
    return type(kind.__name__, (AcceleratedForward, kind), {"__module__": __name__})
