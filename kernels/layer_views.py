"""A layer's tensors as the kernels of attention take them: made once where layers write in the same place."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerViews:
    """Views of one layer's tensors. Each costs the host a microsecond or two; a step has a hundred layers' worth.

    Attributes:
        qkv: ``[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]``.
        out: ``[num_tokens, num_heads * head_dim]``.
        num_heads: of queries.
        num_decoding: tokens of rows that decode, which come first.
        query: the queries in ``qkv``, ``[num_tokens, num_heads, head_dim]``.
        seen: ``out`` in the same shape.
        decoding_query: ``query`` of rows that decode.
        decoding_seen: ``seen`` of these.
        chunks_query: ``query`` of chunks.
        chunks_seen: ``seen`` of these.
    """

    qkv: Tensor
    out: Tensor
    num_heads: int
    num_decoding: int
    query: Tensor
    seen: Tensor
    decoding_query: Tensor
    decoding_seen: Tensor
    chunks_query: Tensor
    chunks_seen: Tensor

    @classmethod
    def of(cls, qkv: Tensor, out: Tensor, num_heads: int, head_dim: int, num_decoding: int) -> "LayerViews":
        """Make them."""
        num_tokens = qkv.shape[0]
        query = qkv.view(num_tokens, -1, head_dim)[:, :num_heads]
        seen = out.view(num_tokens, num_heads, head_dim)
        parts = (query[:num_decoding], seen[:num_decoding], query[num_decoding:], seen[num_decoding:])
        return cls(qkv, out, num_heads, num_decoding, query, seen, *parts)

    def are_of(self, qkv: Tensor, out: Tensor, num_heads: int, num_decoding: int) -> bool:
        """Whether they are of these very tensors."""
        return qkv is self.qkv and out is self.out and (num_heads, num_decoding) == (self.num_heads, self.num_decoding)
