"""GPT-2: learned positions, layer norms before attention and before the MLP, biases everywhere."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.table import Batch, Linear, Operations
from headrace.workers.engine.checkpoint import Tensors
from headrace.workers.engine.models.gpt_config import GptConfig
from headrace.workers.engine.models.weights import Norm, Weights


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block's weights."""

    attention_norm: Norm
    qkv: Linear  # q heads, then k heads, then v heads
    out: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear


class Gpt2:
    """A model's weights and its forward pass.

    Args:
        config: its shape.
        checkpoint: its weights; their names may begin with "transformer." or not, as in the first checkpoints.
        operations: the table to compute with.
        dtype: of weights and activations.

    Raises:
        ModelError: a weight is missing or has another shape than the configuration says.
    """

    def __init__(self, config: GptConfig, checkpoint: Tensors, operations: Operations, dtype: torch.dtype) -> None:
        self.config = config
        self.dtype = dtype
        self._ops = operations
        vocab, hidden = config.vocab_size, config.hidden_size
        outer = Weights(checkpoint, operations, dtype)
        weights = outer.under("transformer.") if "transformer.wte.weight" in checkpoint else outer
        self._embedding = weights.tensor("wte.weight", vocab, hidden)
        self._positions = weights.tensor("wpe.weight", config.max_positions, hidden)
        self._layers = [self._load_layer(weights.under(f"h.{index}.")) for index in range(config.num_layers)]
        self._norm = weights.norm("ln_f", hidden)
        head = self._embedding if config.tied else outer.tensor("lm_head.weight", vocab, hidden)
        self._head = operations.pack_linear(head, None)

    def _load_layer(self, weights: Weights) -> _Layer:
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        return _Layer(
            attention_norm=weights.norm("ln_1", hidden),
            qkv=weights.transposed_linear("attn.c_attn", 3 * hidden, hidden),
            out=weights.transposed_linear("attn.c_proj", hidden, hidden),
            mlp_norm=weights.norm("ln_2", hidden),
            up=weights.transposed_linear("mlp.c_fc", inner, hidden),
            down=weights.transposed_linear("mlp.c_proj", hidden, inner),
        )

    def forward(self, batch: Batch) -> Tensor | None:
        """Compute a batch, and write its keys and values; see ``Model``."""
        ops, eps = self._ops, self.config.layer_norm_eps
        residual = ops.embedding(batch.token_ids, self._embedding)
        ops.add(residual, ops.embedding(batch.positions, self._positions))
        norm = self._layers[0].attention_norm
        x = ops.layer_norm(residual, norm.weight, norm.bias, eps)
        for index, layer in enumerate(self._layers):
            if index:
                norm = layer.attention_norm
                x = ops.layer_norm(x, norm.weight, norm.bias, eps, residual=residual)
            x = self._attention(index, layer, x)
            x = ops.layer_norm(x, layer.mlp_norm.weight, layer.mlp_norm.bias, eps, residual=residual)
            x = ops.linear(ops.gelu(ops.linear(x, layer.up), self.config.gelu), layer.down)
        if not batch.sampled.numel():
            return None
        x, residual = ops.select(x, batch.sampled), ops.select(residual, batch.sampled)
        x = ops.layer_norm(x, self._norm.weight, self._norm.bias, eps, residual=residual)
        return ops.linear(x, self._head)

    def _attention(self, index: int, layer: _Layer, x: Tensor) -> Tensor:
        ops = self._ops
        seen = ops.rotary_attention(ops.linear(x, layer.qkv), index, self.config.num_heads)
        return ops.linear(seen, layer.out)
