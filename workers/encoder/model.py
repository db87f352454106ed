"""The forward pass that all families share, over the table of operations: embeddings, and blocks normed after each sum.

Devlin et al., BERT, 2018. Families differ in what ``EncoderConfig`` says and in the names of their weights.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.kernels.encoder_table import Embeddings, EncoderBatch, EncoderOperations, Norm
from headrace.kernels.table import Linear
from headrace.workers.encoder.config import EncoderConfig
from headrace.workers.encoder.family import Family
from headrace.workers.encoder.runtimes import runtime_for
from headrace.workers.engine.models.weights import Weights


@dataclass(frozen=True, slots=True)
class _Block:
    """One block's weights."""

    qkv: Linear  # query heads, then key heads, then value heads
    out: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    norm: Norm


@dataclass(frozen=True, slots=True)
class Trace:
    """What a forward pass leaves behind on request.

    Attributes:
        hidden_states: if not None, gets what the first block reads and what each block writes, ``[num_tokens, hidden]``
            each.
        attentions: if not None, gets each block's weights of attention, a row each: ``[num_heads, length, length]``.
    """

    hidden_states: list[Tensor] | None = field(default_factory=list)
    attentions: list[list[Tensor]] | None = field(default_factory=list)


class EncoderModel:
    """A model's weights and its forward pass, which several threads may call at once.

    Args:
        config: its shape.
        family: its weights' names.
        weights: its weights, below the prefix that the checkpoint may have.
        blocks: the same, for the transformer blocks, whose table may lay them out otherwise.
        operations: the table to compute with.
        dtype: of weights and activations.

    Attributes:
        config: its shape.
        dtype: of weights and activations.
        runtime: runs a forward pass.

    Raises:
        ModelError: a weight is missing or has another shape than the configuration says.
    """

    def __init__(
        self,
        config: EncoderConfig,
        family: Family,
        weights: Weights,
        blocks: Weights,
        operations: EncoderOperations,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self._ops = operations
        width, hidden = config.embedding_size, config.hidden_size
        tables = weights.under("embeddings.")
        self._embeddings = Embeddings(
            words=tables.tensor("word_embeddings.weight", config.vocab_size, width),
            positions=tables.tensor("position_embeddings.weight", config.num_positions, width),
            types=tables.tensor("token_type_embeddings.weight", config.num_types, width) if config.num_types else None,
            norm=load_norm(tables, "LayerNorm", width, config.layer_norm_eps),
        )
        self._mapping = weights.linear({family.mapping: hidden}, width, bias=True) if family.mapping else None
        loaded = {prefix: self._load(blocks.under(prefix), family) for prefix in dict.fromkeys(config.blocks)}
        self._blocks = [loaded[prefix] for prefix in config.blocks]
        self.runtime = runtime_for(operations, self._compute)

    def _load(self, weights: Weights, family: Family) -> _Block:
        config, names = self.config, family.block
        hidden, inner = config.hidden_size, config.intermediate_size
        qkv = {names.query: hidden, names.key: hidden, names.value: hidden}
        return _Block(
            qkv=weights.linear(qkv, hidden, bias=True),
            out=weights.linear({names.out: hidden}, hidden, bias=True),
            attention_norm=load_norm(weights, names.attention_norm, hidden, config.layer_norm_eps),
            up=weights.linear({names.up: inner}, hidden, bias=True),
            down=weights.linear({names.down: hidden}, inner, bias=True),
            norm=load_norm(weights, names.norm, hidden, config.layer_norm_eps),
        )

    @property
    def word_embeddings(self) -> Tensor:
        """``[vocab, embedding]``, which a language model's head may share."""
        return self._embeddings.words

    def forward(self, batch: EncoderBatch, trace: Trace | None = None) -> Tensor:
        """Encode a batch.

        Args:
            batch: packed by the model's table.
            trace: what else is wanted.

        Returns:
            ``[num_tokens, hidden]``.
        """
        if trace is None or (trace.hidden_states is None and trace.attentions is None):
            return self.runtime(batch)
        return self._compute(batch, trace)

    def _compute(self, batch: EncoderBatch, trace: Trace | None = None) -> Tensor:
        ops, config = self._ops, self.config
        x = ops.embed(batch, self._embeddings)
        if self._mapping is not None:
            x = ops.linear(x, self._mapping)
        states, attentions = (None, None) if trace is None else (trace.hidden_states, trace.attentions)
        for block in self._blocks:
            if states is not None:
                states.append(x)
            qkv = ops.product(x, block.qkv)
            if attentions is not None:
                attentions.append(ops.attention_weights(qkv, block.qkv, batch, config.num_heads))
            seen = ops.attention(qkv, block.qkv, batch, config.num_heads)
            x = ops.add_norm(ops.product(seen, block.out), block.out, x, block.attention_norm)
            inner = ops.activate(ops.product(x, block.up), block.up, config.activation)
            x = ops.add_norm(ops.product(inner, block.down), block.down, x, block.norm)
        if states is not None:
            states.append(x)
        return x


def load_norm(weights: Weights, name: str, width: int, eps: float) -> Norm:
    """Load a layer norm.

    Raises:
        ModelError: a tensor is missing, or has another shape.
    """
    norm = weights.norm(name, width)
    return Norm(norm.weight, norm.bias, eps)
