"""Llama, and with it Mistral, Qwen2 and Qwen3, which differ from it in what ``LlamaConfig`` says."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.table import Linear, Operations, Ragged
from headrace.memory.kv_cache import KVCache
from headrace.workers.engine.checkpoint import Checkpoint
from headrace.workers.engine.models.llama_config import LlamaConfig
from headrace.workers.engine.models.weights import Weights


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block's weights; norms are ``[hidden]``, those of heads ``[head_dim]``."""

    attention_norm: Tensor
    qkv: Linear  # q heads, then k heads, then v heads
    head_norms: tuple[Tensor, Tensor] | None  # of queries, of keys
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear  # gate, then up
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

    def __init__(self, config: LlamaConfig, checkpoint: Checkpoint, operations: Operations, dtype: torch.dtype) -> None:
        self.config = config
        self.dtype = dtype
        self._ops = operations
        self._inv_freq = config.rope.inv_freq()
        vocab, hidden = config.vocab_size, config.hidden_size
        weights = Weights(checkpoint, operations, dtype)
        self._embedding = weights.tensor("model.embed_tokens.weight", vocab, hidden)
        self._layers = [self._load_layer(weights.under(f"model.layers.{index}.")) for index in range(config.num_layers)]
        self._norm = weights.tensor("model.norm.weight", hidden)
        head = self._embedding if config.tied else weights.tensor("lm_head.weight", vocab, hidden)
        self._head = operations.pack_linear(head, None)

    def _load_layer(self, weights: Weights) -> _Layer:
        config = self.config
        hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        queries, keys = config.num_heads * head_dim, config.num_kv_heads * head_dim
        qkv = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
        head_norms = None
        if config.head_norms:
            head_norms = (
                weights.tensor("self_attn.q_norm.weight", head_dim),
                weights.tensor("self_attn.k_norm.weight", head_dim),
            )
        return _Layer(
            attention_norm=weights.tensor("input_layernorm.weight", hidden),
            qkv=weights.linear(qkv, hidden, bias=config.qkv_bias),
            head_norms=head_norms,
            out=weights.linear({"self_attn.o_proj": hidden}, queries, bias=config.out_bias),
            mlp_norm=weights.tensor("post_attention_layernorm.weight", hidden),
            gate_up=weights.linear({"mlp.gate_proj": inner, "mlp.up_proj": inner}, hidden, bias=config.mlp_bias),
            down=weights.linear({"mlp.down_proj": hidden}, inner, bias=config.mlp_bias),
        )

    def forward(self, batch: Ragged, kv_cache: KVCache) -> Tensor | None:
        """Compute a batch, and write its keys and values.

        Args:
            batch: the tokens; ``num_tokens`` in all.
            kv_cache: where they go.

        Returns:
            Logits of the sampled tokens, fp32 ``[num_sampled, vocab]``; None where none are wanted.
        """
        ops, eps = self._ops, self.config.rms_norm_eps
        table = ops.rotary_table(batch.positions, self._inv_freq, self.dtype, scale=self.config.rope.scale)
        residual = ops.embedding(batch.token_ids, self._embedding)
        x = ops.rms_norm(residual, self._layers[0].attention_norm, eps)
        for index, layer in enumerate(self._layers):
            if index:
                x = ops.rms_norm(x, layer.attention_norm, eps, residual=residual)
            x = self._attention(index, layer, x, table, batch, kv_cache)
            x = ops.rms_norm(x, layer.mlp_norm, eps, residual=residual)
            x = ops.linear(ops.silu_mul(ops.linear(x, layer.gate_up)), layer.down)
        if not batch.sampled.numel():
            return None
        x = ops.rms_norm(ops.select(x, batch.sampled), self._norm, eps, residual=ops.select(residual, batch.sampled))
        return ops.linear(x, self._head).float()

    def _attention(
        self,
        index: int,
        layer: _Layer,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        batch: Ragged,
        kv_cache: KVCache,
    ) -> Tensor:
        config = self.config
        heads, kv_heads = config.num_heads, config.num_kv_heads
        qkv = self._ops.linear(x, layer.qkv).view(-1, heads + 2 * kv_heads, config.head_dim)
        if layer.head_norms:
            query_norm, key_norm = layer.head_norms
            self._ops.head_norm(qkv[:, :heads], query_norm, config.rms_norm_eps)
            self._ops.head_norm(qkv[:, heads : heads + kv_heads], key_norm, config.rms_norm_eps)
        self._ops.rotary(qkv[:, : heads + kv_heads], table)
        self._ops.write_kv(kv_cache.layer(index), qkv[:, heads:].view(-1, 2, kv_heads, config.head_dim), batch)
        query = qkv[:, :heads].view(-1, kv_heads, heads // kv_heads, config.head_dim)
        seen = self._ops.attention(query, index, batch, window=config.windows[index])
        return self._ops.linear(seen, layer.out)
