"""A model's config.json, read field by field, so that what nobody read can be refused by name."""

from collections.abc import Mapping
from typing import Any, TypeVar

from headrace.errors import ModelError

T = TypeVar("T")
N = TypeVar("N", int, float)

# What training, bookkeeping and text generation put into config.json: none of it changes what a forward pass computes.
_INERT = frozenset(
    (
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "_num_labels",
        "architectures",
        "attention_dropout",
        "attn_pdrop",
        "auto_map",
        "bos_token_id",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "ignore_keys_at_rope_validation",
        "initializer_range",
        "is_llama_config",
        "label2id",
        "model_type",
        "pad_token_id",
        "pretraining_tp",
        "resid_pdrop",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    )
)


class Fields:
    """One JSON object of a model's configuration.

    A field that is null counts as absent, as everywhere in Hugging Face's configurations.

    Args:
        values: the object.
        where: what to call it in an error.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self._values = values
        self._where = where
        self._known: set[str] = set()

    def find(self, name: str, kind: type[T]) -> T | None:
        """Return a field, None where it is absent or null; a float may be written as an integer.

        Raises:
            ModelError: its value is of another type.
        """
        self._known.add(name)
        value = self._values.get(name)
        if kind is float and type(value) is int:
            value = float(value)
        # A bool is an int to Python, and never to a configuration.
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise self.refusal(name, value)
        return value

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return a field, or what its family takes where it is absent.

        Raises:
            ModelError: its value is of another type, or it is absent and has no default.
        """
        value = self.find(name, kind)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"{self._where}: {name!r} is missing")
        return value

    def positive(self, name: str, kind: type[N], default: N | None = None) -> N:
        """Return a number that makes sense above zero only: a count, a width, a factor.

        Raises:
            ModelError: it is not above zero, its value is of another type, or it is absent and has no default.
        """
        value = self.get(name, kind, default)
        if not value > 0:
            raise self.refusal(name, value)
        return value

    def says(self, name: str) -> bool:
        """Tell whether a field is written, null or not."""
        return name in self._values

    def only(self, name: str, *allowed: Any) -> None:
        """Accept a field that changes nothing: absent, null, or one of the values that mean what is done anyway.

        Raises:
            ModelError: it has another value.
        """
        self._known.add(name)
        value = self._values.get(name)
        if value is not None and value not in allowed:
            raise self.refusal(name, value)

    def ignore(self, *names: str) -> None:
        """Accept fields that change nothing, whatever they say."""
        self._known.update(names)

    def refuse_unknown(self) -> None:
        """End the reading.

        Raises:
            ModelError: there are fields that nobody asked for, whose meaning would be lost.
        """
        written = {name for name, value in self._values.items() if value is not None}
        if unknown := sorted(written - self._known - _INERT):
            raise ModelError(f"{self._where}: what this means is not known: {', '.join(unknown)}")

    def refusal(self, name: str, value: object) -> ModelError:
        """Make the error that says that a field's value is not supported."""
        return ModelError(f"{self._where}: {name} {value!r} is not supported")
