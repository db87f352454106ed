"""Headrace: a fleet of inference workers behind Redis.

This package holds what both ends of the queue agree on. Producers live in ``headrace.producer``, the fleet in
``headrace.workers``, the numerical code in ``headrace.kernels`` and ``headrace.memory``.
"""

from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from torch.nn import Module

    M = TypeVar("M", bound=Module)
else:
    M = TypeVar("M")

__version__ = "0.1.0"


def accelerate(model: M) -> M:
    """Make a transformers encoder faster: ``model = headrace.accelerate(model)``, and call it as before.

    Same inputs, same output classes, several threads at once. Tokens that the attention mask hides are not computed:
    rows are packed behind each other, and what belongs to padding is 0 in all outputs. Where a row begins with padding,
    poolers and classifiers read its first token that is none (transformers' read the padding).

    The original stays as it is, and keeps its own memory; the accelerated model holds the weights of products once
    more, laid out for its device, and shares the others. Whoever trains the original on, accelerates it again. A copy
    of it, or what is unpickled, is accelerated anew.

    Args:
        model: BERT (MiniLM is one), RoBERTa, XLM-RoBERTa, DistilBERT or ALBERT, in evaluation mode: transformers' base
            model, or its class ForSequenceClassification, ForTokenClassification, ForQuestionAnswering or ForMaskedLM.
            Of other classes that hold such a base model, transformers' or your own, the base model is accelerated, and
            what stands on it computes as before, padding included.

    Returns:
        A model of the same class.

    Raises:
        ConfigurationError: it is of another class, in training mode, or in a precision that is not computed here.
        ModelError: its configuration asks for something that would be computed wrongly.
    """
    # Not before: whoever talks to a queue needs no torch.
    from headrace.workers.encoder.plug_in import accelerate_module

    return accelerate_module(model)


def set_allocator(model: "Module", allocator: Literal["planned", "torch"]) -> None:
    """Say who lays out the results of an accelerated model's passes, from its next call on.

    It may be changed at any time, while results of earlier calls live and other threads compute: what a call gives back
    has memory of its own either way.

    Args:
        model: what ``accelerate`` has given back.
        allocator: ``planned``, by the results' lifetimes, which is where a GPU begins; ``torch``, one by one, which is
            all that there is on a CPU.

    Raises:
        ConfigurationError: the model is not accelerated, or its device has no such allocator.
    """
    from headrace.workers.encoder.plug_in import set_module_allocator

    set_module_allocator(model, allocator)
