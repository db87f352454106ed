"""The Llama family: Llama 2 and 3, SmolLM2, and whatever else calls itself LlamaForCausalLM."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.table import Linear, Operations, Ragged
from headrace.memory.kv_cache import KVCache
from headrace.workers.engine.checkpoint import Checkpoint
from headrace.workers.engine.models.llama_config import LlamaConfig


@dataclass(frozen=True, slots=True)
class _Layer:
    """One block's weights; norms are ``[hidden]``."""

    attention_norm: Tensor
    qkv: Linear  # q heads, then k heads, then v heads
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
        self._embedding = checkpoint.tensor("model.embed_tokens.weight", (vocab, hidden), dtype)
        self._layers = [self._load_layer(checkpoint, index) for index in range(config.num_layers)]
        self._norm = checkpoint.tensor("model.norm.weight", (hidden,), dtype)
        head = self._embedding if config.tied else checkpoint.tensor("lm_head.weight", (vocab, hidden), dtype)
        self._head = operations.pack_linear(head, None)

    def _load_layer(self, checkpoint: Checkpoint, index: int) -> _Layer:
        config = self.config
        prefix = f"model.layers.{index}."
        hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        queries, keys = config.num_heads * head_dim, config.num_kv_heads * head_dim

        def linear(names: dict[str, int], num_inputs: int, has_bias: bool) -> Linear:
            weights = [
                checkpoint.tensor(f"{prefix}{name}.weight", (size, num_inputs), self.dtype)
                for name, size in names.items()
            ]
            biases = [
                checkpoint.tensor(f"{prefix}{name}.bias", (size,), self.dtype)
                for name, size in names.items()
                if has_bias
            ]
            return self._ops.pack_linear(_stack(weights), _stack(biases) if has_bias else None)

        def norm(name: str) -> Tensor:
            return checkpoint.tensor(f"{prefix}{name}.weight", (hidden,), self.dtype)

        qkv = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
        return _Layer(
            attention_norm=norm("input_layernorm"),
            qkv=linear(qkv, hidden, config.attention_bias),
            out=linear({"self_attn.o_proj": hidden}, queries, config.attention_bias),
            mlp_norm=norm("post_attention_layernorm"),
            gate_up=linear({"mlp.gate_proj": inner, "mlp.up_proj": inner}, hidden, config.mlp_bias),
            down=linear({"mlp.down_proj": hidden}, inner, config.mlp_bias),
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
        table = ops.rotary_table(batch.positions, self._inv_freq, self.dtype)
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
        self._ops.rotary(qkv[:, : heads + kv_heads], table)
        self._ops.write_kv(kv_cache.layer(index), qkv[:, heads:].view(-1, 2, kv_heads, config.head_dim), batch)
        query = qkv[:, :heads].view(-1, kv_heads, heads // kv_heads, config.head_dim)
        return self._ops.linear(self._ops.attention(query, index, batch), layer.out)


def _stack(tensors: list[Tensor]) -> Tensor:
    """Put weights of one input under each other; a single one stays where the file is mapped."""
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]
