"""Somebody's own transformers model, computed by our encoder: what ``headrace.accelerate`` gives back.

The accelerated model is an instance of the original's class with another forward pass, so that whatever asks for its
configuration, its device or its class finds what it knows: pipelines, sentence-transformers, ``save_pretrained``.
"""

import copy
import functools
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from headrace.errors import ConfigurationError, ModelError
from headrace.workers.encoder.families import ARCHITECTURES, FAMILIES
from headrace.workers.encoder.loading import build_encoder
from headrace.workers.encoder.plug_in_forward import Accelerated, AcceleratedEncoder, AcceleratedModel
from headrace.workers.encoder.runtimes import Allocator
from headrace.workers.encoder.tables import table_for

M = TypeVar("M", bound=torch.nn.Module)

# Classes that write text on an encoder's weights: their caches are no encoder's.
_DECODERS = ("ForCausalLM", "LMHeadModel")
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


def accelerate_module(model: M) -> M:
    """Make an accelerated model of a transformers encoder; see ``headrace.accelerate``."""
    kind = type(model)
    if issubclass(kind, Accelerated):
        return model
    base = getattr(model, "base_model", None)
    if _is_known(kind):
        return _accelerate_model(model)
    if base is not model and base is not None and _is_known(type(base)) and not kind.__name__.endswith(_DECODERS):
        return _accelerate_encoder(model, base)
    names = ", ".join(family.class_name for family in FAMILIES)
    raise ConfigurationError(
        f"headrace.accelerate does not know {kind.__module__}.{kind.__qualname__}; it takes transformers' classes "
        f"{names} (MiniLM is a Bert), each with Model or For... behind it, and what is derived from their "
        f"PreTrainedModel and holds one of them{_hint(model)}"
    )


def _hint(model: object) -> str:
    """Where in a module there is something to be accelerated, as in a SentenceTransformer."""
    if not isinstance(model, torch.nn.Module) or type(model).__name__.endswith(_DECODERS):
        return ""
    found = next(((name, type(each)) for name, each in model.named_modules() if _is_known(type(each))), None)
    return "" if found is None else f". It holds a {found[1].__name__} as {found[0]}: accelerate that, in its place"


def set_module_allocator(model: torch.nn.Module, allocator: Allocator) -> None:
    """Say where an accelerated model's results lie; see ``headrace.set_allocator``."""
    if allocator not in get_args(Allocator):
        raise ConfigurationError(f"allocator {allocator!r}: there are {', '.join(get_args(Allocator))}")
    encoders = [module for module in model.modules() if isinstance(module, AcceleratedModel)]
    if not encoders:
        raise ConfigurationError("only what headrace.accelerate has given back has an allocator to be set")
    for encoder in encoders:
        encoder.set_allocator(allocator)


def _is_known(kind: type[Any]) -> bool:
    """Whether a class is ours from its tokens to its output: exactly it, for what is derived may compute otherwise."""
    return kind.__name__ in _ARCHITECTURES and kind.__module__.startswith("transformers.models.")


def _accelerate_model(model: M) -> M:
    device, dtype = _check(model)
    tensors = _ModuleTensors(model)
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}  # type: ignore[operator, union-attr]
    encoder = build_encoder(config, tensors, tensors.tensors, table_for(device), dtype)
    accelerated = _copy(model, AcceleratedModel)
    object.__setattr__(accelerated, "_headrace", encoder)
    return accelerated


def _accelerate_encoder(model: M, base: torch.nn.Module) -> M:
    _check(model)
    accelerated = _copy(model, AcceleratedEncoder)
    modules = {name: _accelerate_model(module) if module is base else module for name, module in model.named_children()}
    object.__setattr__(accelerated, "_modules", modules)
    return accelerated


def _check(model: torch.nn.Module) -> tuple[torch.device, torch.dtype]:
    """Tell where a model is, and in which precision.

    Raises:
        ConfigurationError: it cannot be computed as it is.
    """
    if model.training:
        raise ConfigurationError("the model is in training mode; call model.eval() before headrace.accelerate(model)")
    devices = {parameter.device for parameter in model.parameters()}
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(devices) != 1 or len(dtypes) != 1:
        raise ConfigurationError(
            f"the model is spread over {len(devices)} devices and {len(dtypes)} dtypes; one is needed"
        )
    (device,), (dtype,) = devices, dtypes
    if device.type not in ("cpu", "cuda"):
        raise ConfigurationError(f"the model is on {device}; headrace computes on cpu and cuda: move or load it there")
    if dtype not in (torch.float32, torch.bfloat16) and not (dtype == torch.float16 and device.type == "cuda"):
        raise ConfigurationError(f"the model is in {dtype} on {device}; convert it to float32 or bfloat16")
    return device, dtype


def _copy(model: M, form: type[Accelerated]) -> M:
    """Copy a module, but not its weights; its class gets another forward."""
    copied = copy.copy(model)
    copied.__class__ = _derived(form, type(model))  # type: ignore[arg-type]
    return copied


@functools.cache
def _derived(form: type[Accelerated], kind: type[Any]) -> type[Any]:
    """Make the class, which keeps its name: pipelines and checkpoints go by it."""
    return type(kind.__name__, (form, kind), {"__module__": __name__})
