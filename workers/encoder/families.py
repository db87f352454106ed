"""The families of encoders, by the names that config.json gives under "architectures" or "model_type"."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from headrace.errors import ModelError
from headrace.workers.encoder.albert import ALBERT
from headrace.workers.encoder.bert import BERT, ROBERTA, XLM_ROBERTA
from headrace.workers.encoder.distilbert import DISTILBERT
from headrace.workers.encoder.family import TASKS, Family, Task

FAMILIES: Final = (ALBERT, BERT, DISTILBERT, ROBERTA, XLM_ROBERTA)

ARCHITECTURES: Final[Mapping[str, tuple[Family, Task]]] = MappingProxyType(
    {family.class_name + task: (family, task) for family in FAMILIES for task in TASKS}
)
"""By the name of transformers' class. ``BertModel`` is MiniLM's, too."""


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """Tell which architecture a config.json names, None where it is no encoder's.

    Where it names none, it is the family's headless one, as in transformers.
    """
    named = config.get("architectures")
    if named is None:
        by_type = {family.model_type: family.class_name + "Model" for family in FAMILIES}
        return by_type.get(str(config.get("model_type")))
    architecture = named[0] if isinstance(named, list) and named else named
    return architecture if isinstance(architecture, str) and architecture in ARCHITECTURES else None


def find_architecture(config: Mapping[str, Any]) -> tuple[Family, Task]:
    """Find the family and the task that a config.json names.

    Raises:
        ModelError: it is no encoder of a family that is supported.
    """
    architecture = architecture_of(config)
    if architecture is None:
        named = config.get("architectures") or config.get("model_type")
        known = ", ".join(family.class_name for family in FAMILIES)
        raise ModelError(
            f"config.json: {named!r} is no encoder that is supported; supported are {known}, "
            f"each with one of {', '.join(TASKS)} behind it"
        )
    return ARCHITECTURES[architecture]
