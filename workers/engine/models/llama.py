"""Llama, and with it Mistral, Qwen2 and Qwen3, which differ from it in what ``LlamaConfig`` says."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.table import Batch, HeadNorm, Linear, Operations
from headrace.workers.engine.checkpoint import Tensors
from headrace.workers.engine.models.llama_config import LlamaConfig
from headrace.workers.engine.models.weights import Weights

# Rows of the vocabulary whose products are made at once: fewer lose speed, and more would want more memory.
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block's weights; norms are ``[hidden]``, those of heads ``[head_dim]``."""

    attention_norm: Tensor
    qkv: Linear  # q heads, then k heads, then v heads
    head_norm: HeadNorm | None
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class Llama:
    """A model's weights and its forward pass.

    Args:
        config: its shape.
        checkpoint: its weights.
        operations: the table to compute with.
        dtype: of weights and activations.

    Raises:
        ModelError: a weight is missing or has another shape than the configuration says.
    """

    def __init__(self, config: LlamaConfig, checkpoint: Tensors, operations: Operations, dtype: torch.dtype) -> None:
        self.config = config
        self.dtype = dtype
        self._ops = operations
        self._inv_freq = operations.hold(config.rope.inv_freq())
        vocab, hidden = config.vocab_size, config.hidden_size
        weights = Weights(checkpoint, operations, dtype)
        self._embedding = weights.tensor("model.embed_tokens.weight", vocab, hidden)
        self._layers = [self._load_layer(weights.under(f"model.layers.{index}.")) for index in range(config.num_layers)]
        self._norm = weights.tensor("model.norm.weight", hidden)
        head = self._embedding if config.tied else weights.tensor("lm_head.weight", vocab, hidden)
        self._head = operations.pack_linear(head, None)
        self._first_qkv = self._tabulate_first_qkv()

    def _load_layer(self, weights: Weights) -> _Layer:
        config = self.config
        hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        queries, keys = config.num_heads * head_dim, config.num_kv_heads * head_dim
        qkv = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
        head_norm = None
        if config.head_norms:
            query_norm, key_norm = (weights.tensor(f"self_attn.{x}_norm.weight", head_dim) for x in "qk")
            head_norm = HeadNorm(query_norm, key_norm, config.rms_norm_eps)
        return _Layer(
            attention_norm=weights.tensor("input_layernorm.weight", hidden),
            qkv=weights.linear(qkv, hidden, bias=config.qkv_bias),
            head_norm=head_norm,
            out=weights.linear({"self_attn.o_proj": hidden}, queries, bias=config.out_bias),
            mlp_norm=weights.tensor("post_attention_layernorm.weight", hidden),
            gate_up=self._load_gate_up(weights),
            down=weights.linear({"mlp.down_proj": hidden}, inner, bias=config.mlp_bias),
        )

    def _load_gate_up(self, weights: Weights) -> Linear:
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        names = ("mlp.gate_proj", "mlp.up_proj")
        pair = [weights.tensor(f"{name}.weight", inner, hidden) for name in names]
        biases = [weights.tensor(f"{name}.bias", inner) for name in names] if self.config.mlp_bias else []
        return self._ops.pack_gate_up(*pair, *biases)

    def _tabulate_first_qkv(self) -> Tensor | None:
        """Make the first layer's queries, keys and values, before rotation, which follow from the token alone [1].

        [1] N. Graef, Transformer tricks: precomputing the first layer, 2024.

        Returns:
            ``[vocab, (num_heads + 2 * num_kv_heads) * head_dim]``; None where there is no memory to spare for it.
        """
        ops, config, layer = self._ops, self.config, self._layers[0]
        width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        if not ops.take_spare_bytes(config.vocab_size * width * self.dtype.itemsize):
            return None
        made = self._embedding.new_empty(config.vocab_size, width)
        for start in range(0, config.vocab_size, _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            norm = layer.attention_norm, config.rms_norm_eps
            made[rows] = ops.norm_linear(self._embedding[rows], *norm, layer.qkv)
        return made

    def forward(self, batch: Batch) -> Tensor | None:
        """Compute a batch, and write its keys and values.

        Args:
            batch: the tokens; ``num_tokens`` in all.

        Returns:
            Logits of the sampled tokens, ``[num_sampled, vocab]``; None where none are wanted.
        """
        ops, eps = self._ops, self.config.rms_norm_eps
        table = ops.rotary_table(batch.positions, self._inv_freq, self.dtype, scale=self.config.rope.scale)
        residual = ops.embedding(batch.token_ids, self._embedding)
        for index, layer in enumerate(self._layers):
            is_last = index == len(self._layers) - 1
            if index == 0 and self._first_qkv is not None:
                qkv = ops.embedding(batch.token_ids, self._first_qkv)
            else:
                qkv = self._qkv(layer, residual, only_sampled=is_last)
            seen = ops.rotary_attention(
                *(qkv, index, self.config.num_heads),
                rotary=table,
                norm=layer.head_norm,
                window=self.config.windows[index],
                only_sampled=is_last,
            )
            if is_last:
                # All keys and values are written: of a prompt's other tokens nothing more will be asked.
                if not batch.sampled.numel():
                    return None
                residual = ops.select(residual, batch.sampled)
            ops.linear_add(seen, layer.out, residual)
            gated = ops.norm_gate_up(residual, layer.mlp_norm, eps, layer.gate_up)
            ops.linear_add(gated, layer.down, residual)
        return ops.norm_linear(residual, self._norm, eps, self._head)

    def _qkv(self, layer: _Layer, residual: Tensor, *, only_sampled: bool) -> Tensor:
        ops, config = self._ops, self.config
        product = (residual, layer.attention_norm, config.rms_norm_eps, layer.qkv)
        if only_sampled:
            return ops.norm_linear_for_sampled(*product, config.num_heads * config.head_dim)
        return ops.norm_linear(*product)
