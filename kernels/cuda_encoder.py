"""The encoders' table on a GPU: our kernels between products, and cuBLAS through torch for products of many tokens.

Shapes and dtypes are in ``encoder_table.EncoderOperations``, which ``CudaEncoder`` fulfils; here are only the reasons
for how.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.activation import Gelu, bias_gelu
from headrace.kernels.cuda_encoder_batch import CudaEncoderBatch, pack_cuda
from headrace.kernels.device import open_device
from headrace.kernels.embedding import embedding
from headrace.kernels.encoder_attention import encoder_attention
from headrace.kernels.encoder_embedding import encoder_embedding
from headrace.kernels.encoder_table import Activation, Embeddings, EncoderBatch, Norm, Pooling
from headrace.kernels.layer_norm import layer_norm
from headrace.kernels.pooling import pool
from headrace.kernels.softmax import softmax
from headrace.kernels.table import Linear
from headrace.kernels.thin_choice import Product, beats_cublas
from headrace.kernels.thin_product import ThinProduct

_GELU: dict[str, Gelu] = {"gelu": "erf", "gelu_tanh": "tanh"}


@dataclass(frozen=True, slots=True)
class _Packed(Linear):
    thin: ThinProduct | None = None

    def thin_for(self, num_tokens: int) -> ThinProduct | None:
        """The product that adds the bias itself, for so few tokens that it is the faster one."""
        out_features, in_features = self.weight.shape
        return self.thin if beats_cublas(Product(num_tokens, out_features, in_features)) else None


class CudaEncoder:
    """The table, ``encoder_table.EncoderOperations``, on torch's current stream.

    It keeps nothing of a batch, so that several threads may call it at once, without a lock: their kernels follow each
    other on torch's stream, which a GPU that is busy with one batch loses nothing by.

    Args:
        device: a GPU, with its index.

    Raises:
        ConfigurationError: no such GPU, no PyCUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self._has_bulk_copies = open_device(device.index).arch.startswith("sm_9")
        self._device = device

    def hold(self, weight: Tensor) -> Tensor:
        """Bring a weight to the GPU."""
        return weight.to(self._device)

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Keep rows contiguous, which serves cuBLAS and the thin product alike."""
        weight = weight.to(self._device).contiguous()
        bias = None if bias is None else bias.to(self._device)
        sixteen = weight.dtype in (torch.float16, torch.bfloat16)
        fits = self._has_bulk_copies and sixteen and weight.shape[1] % 8 == 0
        return _Packed(weight, bias, thin=ThinProduct(weight, bias) if fits else None)

    def pack(
        self, token_ids: Tensor, positions: Tensor, type_ids: Tensor | None, lengths: Sequence[int]
    ) -> EncoderBatch:
        """Plan attention, and bring everything to the GPU; a small batch in the shape that graphs are captured in."""
        return pack_cuda(token_ids, positions, type_ids, lengths, self._device)

    def embed(self, batch: EncoderBatch, embeddings: Embeddings, *, out: Tensor | None = None) -> Tensor:
        """Look up, add and normalise by one kernel."""
        return encoder_embedding(batch.token_ids, batch.positions, batch.type_ids, embeddings, out=out)

    def product(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Multiply; what follows adds the bias where the product does not do it for nothing."""
        thin = _thin(linear, x.shape[0])
        if thin is None:
            return torch.mm(x, linear.weight.T, out=out)
        out = x.new_empty(x.shape[0], linear.weight.shape[0]) if out is None else out
        thin(x, out)
        return out

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Multiply and add."""
        if linear.bias is None or _thin(linear, x.shape[0]) is not None:
            return self.product(x, linear, out=out)
        return torch.addmm(linear.bias, x, linear.weight.T, out=out)

    def attention(
        self, qkv: Tensor, linear: Linear, batch: EncoderBatch, num_heads: int, *, out: Tensor | None = None
    ) -> Tensor:
        """Attend straight from the product."""
        if not isinstance(batch, CudaEncoderBatch):
            raise KernelError("the batch was packed by another table")
        return encoder_attention(qkv, _missing(linear, qkv), batch.items, num_heads, out=out)

    def attention_weights(self, qkv: Tensor, linear: Linear, batch: EncoderBatch, num_heads: int) -> list[Tensor]:
        """Compute scores by cuBLAS and their softmax by one kernel, row by row.

        The keys' bias is left out: it adds the same to all scores of a query.
        """
        width = qkv.shape[1] // 3
        bias = _missing(linear, qkv)
        query, key = qkv[:, :width], qkv[:, width : 2 * width]
        query = query if bias is None else query + bias[:width]
        weights = []
        for queries, keys in zip(*(torch.split_with_sizes(x, batch.lengths) for x in (query, key)), strict=True):
            heads = [x.reshape(x.shape[0], num_heads, -1).transpose(0, 1) for x in (queries, keys)]
            scores = torch.matmul(heads[0], heads[1].transpose(1, 2))[None]
            weights.append(softmax(scores, scale=heads[0].shape[2] ** -0.5, out=scores)[0])
        return weights

    def activate(self, x: Tensor, linear: Linear, activation: Activation, *, out: Tensor | None = None) -> Tensor:
        """Add the bias and apply a GELU by one kernel, in place; others, of rare models and of heads, are torch's."""
        bias, out = _missing(linear, x), x if out is None else out
        gelu = _GELU.get(activation)
        if gelu is not None:
            return bias_gelu(x, bias, gelu=gelu, out=out)
        if bias is not None:
            x = torch.add(x, bias, out=out)
        return torch.clamp_min(x, 0, out=out) if activation == "relu" else torch.tanh(x, out=out)

    def add_norm(
        self, x: Tensor, linear: Linear | None, residual: Tensor | None, norm: Norm, *, out: Tensor | None = None
    ) -> Tensor:
        """Add and normalise by one kernel, in place."""
        return layer_norm(
            x,
            norm.weight,
            norm.bias,
            norm.eps,
            residual=residual,
            input_bias=None if linear is None else _missing(linear, x),
            update_residual=False,
            out=x if out is None else out,
        )

    def pool(self, x: Tensor, batch: EncoderBatch, pooling: Pooling, *, normalise: bool) -> Tensor:
        """Pool and normalise by one kernel."""
        return pool(x, batch.starts, pooling, normalise=normalise)

    def select(self, x: Tensor, indices: Tensor) -> Tensor:
        """Pick rows, as an embedding does."""
        return embedding(indices.to(self._device).contiguous(), x)


def _thin(linear: Linear, num_tokens: int) -> ThinProduct | None:
    return linear.thin_for(num_tokens) if isinstance(linear, _Packed) else None


def _missing(linear: Linear, x: Tensor) -> Tensor | None:
    """The bias that the product of so many tokens, whose result is ``x``, has not added."""
    return None if _thin(linear, x.shape[0]) is not None else linear.bias
