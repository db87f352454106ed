"""What tells the families of encoders apart: how config.json is read, and what their weights are called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from headrace.kernels.encoder_table import Activation
from headrace.workers.encoder.config import EncoderConfig


@dataclass(frozen=True, slots=True)
class BlockNames:
    """Weights of one transformer block, under its prefix."""

    query: str
    key: str
    value: str
    out: str
    attention_norm: str
    up: str
    down: str
    norm: str


@dataclass(frozen=True, slots=True)
class FillNames:
    """Weights of the head that predicts masked tokens.

    Attributes:
        dense: from hidden states to the embeddings' width.
        norm: behind it.
        decoder: to the vocabulary.
        bias: of the decoder; where the two are not tied, ``<decoder>.bias`` stands for it.
        activation: between dense and norm; None for the model's own.
    """

    dense: str
    norm: str
    decoder: str
    bias: str
    activation: Activation | None = None


@dataclass(frozen=True, slots=True)
class ClassNames:
    """Weights of the head that classifies rows by their first token.

    Attributes:
        dense: a layer before the last; None where it is the pooler.
        activation: behind it.
        out: the last layer.
    """

    dense: str | None
    activation: Activation
    out: str


@dataclass(frozen=True, slots=True)
class Family:
    """One family.

    Attributes:
        model_type: its name in config.json.
        class_name: what its architectures' names begin with.
        parse: from config.json to a shape; raises ModelError for what is not supported.
        prefix: of the encoder's weights in checkpoints of models with a head.
        block: names of a block's weights.
        mapping: weights between embeddings and the first block, None where there are none.
        pooler: weights of the pooler, None for families without.
        fill: the head's that predicts masked tokens.
        classes: the head's that classifies rows.
    """

    model_type: str
    class_name: str
    parse: Callable[[Mapping[str, Any]], EncoderConfig]
    prefix: str
    block: BlockNames
    mapping: str | None
    pooler: str | None
    fill: FillNames
    classes: ClassNames


Task = Literal[
    "Model",
    "ForMaskedLM",
    "ForPreTraining",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
]
"""How the name of an architecture goes on behind its family's."""

TASKS: tuple[Task, ...] = get_args(Task)
