"""GPT-J: one norm a block, attention and MLP beside each other, and only a part of each head is rotated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.table import Batch, Linear, Operations
from headrace.workers.engine.checkpoint import Tensors
from headrace.workers.engine.models.gpt_config import GptJConfig
from headrace.workers.engine.models.weights import Norm, Weights


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block's weights."""

    norm: Norm
    qkv: Linear  # q heads, then k heads, then v heads
    out: Linear
    up: Linear
    down: Linear


class GptJ:
    """A model's weights and its forward pass.

    Args:
        config: its shape.
        checkpoint: its weights.
        operations: the table to compute with.
        dtype: of weights and activations.

    Raises:
        ModelError: a weight is missing or has another shape than the configuration says.
    """

    def __init__(self, config: GptJConfig, checkpoint: Tensors, operations: Operations, dtype: torch.dtype) -> None:
        self.config = config
        self.dtype = dtype
        self._ops = operations
        self._inv_freq = operations.hold(config.rope.inv_freq())
        vocab, hidden = config.vocab_size, config.hidden_size
        outer = Weights(checkpoint, operations, dtype)
        weights = outer.under("transformer.")
        self._embedding = weights.tensor("wte.weight", vocab, hidden)
        self._layers = [self._load_layer(weights.under(f"h.{index}.")) for index in range(config.num_layers)]
        self._norm = weights.norm("ln_f", hidden)
        head = self._embedding if config.tied else outer.tensor("lm_head.weight", vocab, hidden)
        self._head = operations.pack_linear(head, outer.tensor("lm_head.bias", vocab))

    def _load_layer(self, weights: Weights) -> _Layer:
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        order = self._half_order()
        qkv = (
            weights.tensor("attn.q_proj.weight", hidden, hidden)[order],
            weights.tensor("attn.k_proj.weight", hidden, hidden)[order],
            weights.tensor("attn.v_proj.weight", hidden, hidden),
        )
        return _Layer(
            norm=weights.norm("ln_1", hidden),
            qkv=self._ops.pack_linear(torch.cat(qkv), None),
            out=weights.linear({"attn.out_proj": hidden}, hidden, bias=False),
            up=weights.linear({"mlp.fc_in": inner}, hidden, bias=True),
            down=weights.linear({"mlp.fc_out": hidden}, inner, bias=True),
        )

    def _half_order(self) -> Tensor:
        """Order rows so that halves turn against each other where GPT-J turns neighbours: int64 ``[hidden]``.

        Queries and keys are reordered alike, so their products, all that attention knows of them, stay.
        """
        config, rotary_dim = self.config, self.config.rope.rotary_dim
        rows = torch.arange(config.hidden_size).view(config.num_heads, config.head_dim)
        rotated, kept = rows[:, :rotary_dim], rows[:, rotary_dim:]
        return torch.cat((rotated[:, 0::2], rotated[:, 1::2], kept), dim=1).flatten()

    def forward(self, batch: Batch) -> Tensor | None:
        """Compute a batch, and write its keys and values; see ``Model``."""
        ops, eps = self._ops, self.config.layer_norm_eps
        table = ops.rotary_table(batch.positions, self._inv_freq, self.dtype)
        residual = ops.embedding(batch.token_ids, self._embedding)
        x = ops.layer_norm(residual, self._layers[0].norm.weight, self._layers[0].norm.bias, eps)
        for index, layer in enumerate(self._layers):
            if index:
                x = ops.layer_norm(x, layer.norm.weight, layer.norm.bias, eps, residual=residual)
            self._attend(index, layer, x, table, residual)
            x = ops.linear(ops.gelu(ops.linear(x, layer.up), self.config.gelu), layer.down)
        if not batch.sampled.numel():
            return None
        x, residual = ops.select(x, batch.sampled), ops.select(residual, batch.sampled)
        x = ops.layer_norm(x, self._norm.weight, self._norm.bias, eps, residual=residual)
        return ops.linear(x, self._head)

    def _attend(self, index: int, layer: _Layer, x: Tensor, table: tuple[Tensor, Tensor], residual: Tensor) -> None:
        """Add what a layer's attention sees of ``x`` into the residual stream, which its MLP does not read."""
        ops = self._ops
        seen = ops.rotary_attention(ops.linear(x, layer.qkv), index, self.config.num_heads, rotary=table)
        ops.linear_add(seen, layer.out, residual)
