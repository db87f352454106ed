"""What an accelerated model does otherwise than its class: mixed into that class by ``plug_in``."""

from collections.abc import Callable
from typing import Any, Self, SupportsIndex

import torch
from torch import Tensor

import headrace
from headrace.errors import ConfigurationError
from headrace.workers.encoder.loading import Encoder
from headrace.workers.encoder.padding import Rows, pack_padded, pad_rows
from headrace.workers.encoder.plug_in_outputs import make_output
from headrace.workers.encoder.runtimes import Allocator


class Accelerated:
    """A module that computes, stays where it is, and is never trained."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode.

        Raises:
            ConfigurationError: training is asked for.
        """
        if mode:
            raise ConfigurationError("a model accelerated by headrace cannot be trained; train the original model")
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Be copied and pickled as the original, and accelerated there: what is laid out for a device cannot travel."""
        return headrace.accelerate, (self._original(),)

    def _original(self) -> Any:
        """A model of the original's class over the same weights."""
        kind = type(self).__bases__[1]
        original: Any = object.__new__(kind)
        original.__dict__.update({name: value for name, value in vars(self).items() if name != "_headrace"})
        return original

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


class AcceleratedModel(Accelerated):
    """A model that is ours from its tokens to its output."""

    _headrace: Encoder

    def set_allocator(self, allocator: Allocator) -> None:
        """See ``headrace.set_allocator``."""
        self._headrace.model.runtime.allocator = allocator

    # What it computes is laid out for libraries that torch's compiler cannot look into; it compiles what is around it.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | Rows | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | Rows | None = None,
        position_ids: Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Compute as transformers does, but for nothing that the mask hides.

        Args:
            input_ids: integers ``[batch, length]``; or rows without padding, a list of lists or of tensors, which are
                then not to be masked, and whose outputs are padded on the right.
            attention_mask: ``[batch, length]``, 0 where a token is padding; None where none is.
            token_type_ids: integers ``[batch, length]``, or rows as of ``input_ids``; None where all are 0.
            position_ids: integers ``[batch, length]`` or ``[1, length]``; None for those that transformers takes.
            output_attentions: give attentions; None for what the configuration says.
            output_hidden_states: give hidden states; None for what the configuration says.
            return_dict: give an output object and no tuple; None for what the configuration says.
            others: must be None or False: labels, embeddings instead of tokens, caches.

        Returns:
            The original's output class, without gradients. What belongs to padding is 0.

        Raises:
            TypeError: an argument is not supported, or not of its type.
            ValueError: a tensor has a shape that does not fit, or a row is too long.
        """
        for name, value in others.items():
            if value is not None and value is not False:
                raise TypeError(f"a model accelerated by headrace does not take {name}; use the original model for it")
        if input_ids is None:
            raise TypeError("a model accelerated by headrace needs input_ids")
        for name, given in (("attention_mask", attention_mask), ("position_ids", position_ids)):
            if given is not None and not isinstance(given, Tensor):
                raise TypeError(f"{name} must be a tensor, not {type(given).__name__}")
        ragged = None
        if not isinstance(input_ids, Tensor):
            if attention_mask is not None:
                raise TypeError("rows without padding take no attention_mask")
            input_ids, ragged = pad_rows("input_ids", input_ids, self.device)  # type: ignore[attr-defined]
            attention_mask = ragged
        if token_type_ids is not None and not isinstance(token_type_ids, Tensor):
            token_type_ids, typed = pad_rows("token_type_ids", token_type_ids, self.device)  # type: ignore[attr-defined]
            if ragged is not None and not torch.equal(typed, ragged):
                raise ValueError("token_type_ids must have rows as long as those of input_ids")
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


class AcceleratedEncoder(Accelerated):
    """A model whose encoder is ours; what stands on it is its own."""

    def _original(self) -> Any:
        """A model of the original's class over the same weights."""
        original = super()._original()
        original._modules = {
            name: module._original() if isinstance(module, Accelerated) else module
            for name, module in self._modules.items()  # type: ignore[attr-defined]
        }
        return original

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute as the class does, without gradients."""
        return super().forward(*args, **kwargs)  # type: ignore[misc]
