"""What stands on an encoder: the pooler, classes of rows and of tokens, and the masked tokens' vocabulary."""

from dataclasses import dataclass

from torch import Tensor

from headrace.kernels.encoder_table import Activation, EncoderBatch, EncoderOperations, Norm
from headrace.kernels.table import Linear
from headrace.workers.encoder.config import EncoderConfig
from headrace.workers.encoder.family import Family
from headrace.workers.encoder.model import load_norm
from headrace.workers.engine.models.weights import Weights


@dataclass(frozen=True, slots=True)
class Dense:
    """A product and a function of it: BERT's pooler, or what stands before a classifier."""

    linear: Linear
    activation: Activation

    def apply(self, ops: EncoderOperations, x: Tensor) -> Tensor:
        """Compute ``[n, hidden]`` from ``[n, hidden]``."""
        return ops.activate(ops.product(x, self.linear), self.linear, self.activation)


@dataclass(frozen=True, slots=True)
class RowClasses:
    """Classifies rows by their first token.

    Attributes:
        dense: before the last product.
        out: to the labels.
    """

    dense: Dense
    out: Linear

    def logits(self, ops: EncoderOperations, hidden: Tensor, batch: EncoderBatch) -> Tensor:
        """Compute ``[num_rows, num_labels]`` from ``hidden [num_tokens, hidden]``."""
        return ops.linear(self.dense.apply(ops, ops.select(hidden, batch.starts[:-1])), self.out)


@dataclass(frozen=True, slots=True)
class FillHead:
    """Tells what masked tokens may be."""

    dense: Dense
    norm: Norm
    decoder: Linear

    def logits(self, ops: EncoderOperations, hidden: Tensor) -> Tensor:
        """Compute ``[n, vocab]`` from the chosen tokens' ``hidden [n, hidden]``."""
        return ops.linear(ops.add_norm(self.dense.apply(ops, hidden), None, None, self.norm), self.decoder)


@dataclass(frozen=True, slots=True)
class Heads:
    """What a folder has on its encoder.

    Attributes:
        pooler: of the first token, None where the folder has none.
        classes: of rows, None where the architecture has none.
        fill: None where the architecture has none.
        token_classes: of each token: named entities, or an answer's start and end; None where there are none.
    """

    pooler: Dense | None = None
    classes: RowClasses | None = None
    fill: FillHead | None = None
    token_classes: Linear | None = None


def load_pooler(family: Family, weights: Weights, hidden: int) -> Dense | None:
    """Load the pooler of families that have one; ``weights`` are below the encoder's prefix.

    Raises:
        ModelError: a tensor is missing, or has another shape.
    """
    if family.pooler is None:
        return None
    return Dense(weights.linear({family.pooler: hidden}, hidden, bias=True), "tanh")


def load_classes(config: EncoderConfig, family: Family, weights: Weights, pooler: Dense | None) -> RowClasses:
    """Load what classifies rows.

    Args:
        config: the model's.
        family: the model's.
        weights: at the checkpoint's top.
        pooler: the model's.

    Raises:
        ModelError: a tensor is missing, or has another shape.
    """
    names, hidden = family.classes, config.hidden_size
    dense = pooler
    if names.dense is not None:
        dense = Dense(weights.linear({names.dense: hidden}, hidden, bias=True), names.activation)
    assert dense is not None, "a family whose classifier has no layer of its own has a pooler"
    return RowClasses(dense, weights.linear({names.out: len(config.labels)}, hidden, bias=True))


def load_fill(
    config: EncoderConfig, family: Family, weights: Weights, words: Tensor, ops: EncoderOperations, *, own_bias: bool
) -> FillHead:
    """Load what predicts masked tokens.

    Args:
        config: the model's.
        family: the model's.
        weights: at the checkpoint's top.
        words: the embedding, whose weights are the decoder's where they are tied.
        ops: the table.
        own_bias: the bias lies under ``<decoder>.bias``.

    Raises:
        ModelError: a tensor is missing, or has another shape.
    """
    names, width = family.fill, config.embedding_size
    dense = weights.linear({names.dense: width}, config.hidden_size, bias=True)
    decoder = words if config.tied else weights.tensor(f"{names.decoder}.weight", config.vocab_size, width)
    bias = weights.tensor(f"{names.decoder}.bias" if own_bias else names.bias, config.vocab_size)
    return FillHead(
        dense=Dense(dense, names.activation or config.activation),
        norm=load_norm(weights, names.norm, width, config.layer_norm_eps),
        decoder=ops.pack_linear(decoder, bias),
    )
