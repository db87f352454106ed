"""The table of operations that encoders are written over: each is a product, or does everything between two products.

An encoder reads its rows whole, in both directions, and keeps nothing from one batch to the next. A batch is ragged:
the tokens of all rows lie behind each other, ``num_tokens`` in all, without padding.

A product and what follows it share the weight's ``Linear``: whether the product itself adds the bias, or the operation
behind it does, is the table's own affair. A model never adds a bias, and gives a product's result to exactly one of
``attention``, ``activate`` and ``add_norm``, or asks for ``linear``, which is complete.

A table may be called from several threads at once: what it must remember of a batch, it keeps in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from headrace.kernels.table import Linear, Packer

Activation = Literal["gelu", "gelu_tanh", "relu", "tanh"]
"""``gelu`` is ``x * Phi(x)``; ``gelu_tanh`` its approximation, ``gelu_new`` to Hugging Face."""

Pooling = Literal["cls", "mean", "max", "last"]
"""How a row's vectors become one: the first token's, their mean, each number's maximum, or the last token's."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm; its variance is the biased one.

    Attributes:
        weight: ``[width]``.
        bias: ``[width]``.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What a token is to the first layer: a sum of table rows, normalised.

    Attributes:
        words: ``[vocab, width]``.
        positions: ``[num_positions, width]``.
        types: ``[num_types, width]``, or None where tokens have no types.
        norm: of the sum.
    """

    words: Tensor
    positions: Tensor
    types: Tensor | None
    norm: Norm


@dataclass(frozen=True, slots=True, eq=False)
class EncoderBatch:
    """Rows to encode, as ``pack`` has laid them out on the table's device. A table may want more: its batches say more.

    Attributes:
        token_ids: int64 ``[num_tokens]``.
        positions: int64 ``[num_tokens]``, rows of the table of positions (RoBERTa's begin behind its padding's).
        type_ids: int64 ``[num_tokens]``; None where all are 0.
        starts: int32 ``[num_rows + 1]``, where each row begins, and behind the last one ``num_tokens``.
        lengths: tokens of each row, >= 1; on the host, so that nothing waits for the device.
    """

    token_ids: Tensor
    positions: Tensor
    type_ids: Tensor | None
    starts: Tensor
    lengths: tuple[int, ...]


class EncoderOperations(Packer, Protocol):
    """The table. Activations and weights have one dtype: fp32 or bf16 on a CPU; fp32, fp16 or bf16 on a GPU.

    Every operation with a result takes ``out``, of the result's shape and contiguous, unless said otherwise: the result
    is written there and returned. Without it, it is a tensor of its own, or one of the arguments overwritten: a model
    must not use ``x`` after an operation that says so.
    """

    def pack(
        self, token_ids: Tensor, positions: Tensor, type_ids: Tensor | None, lengths: Sequence[int]
    ) -> EncoderBatch:
        """Lay a batch out.

        Args:
            token_ids: integers ``[num_tokens]``, on any device.
            positions: integers ``[num_tokens]``, likewise.
            type_ids: integers ``[num_tokens]``, likewise; None where all are 0.
            lengths: tokens of each row, >= 1, ``num_tokens`` in all.
        """

    def embed(self, batch: EncoderBatch, embeddings: Embeddings, *, out: Tensor | None = None) -> Tensor:
        """Look words, positions and types up, sum and normalise: ``[num_tokens, width]``.

        Without ``batch.type_ids`` every token has type 0, whose row is added where there are types.
        """

    def product(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Multiply ``x [num_tokens, in_features]``: ``[num_tokens, out_features]``, the bias maybe still missing."""

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Multiply ``x [n, in_features]`` and add the bias: ``[n, out_features]``."""

    def attention(
        self, qkv: Tensor, linear: Linear, batch: EncoderBatch, num_heads: int, *, out: Tensor | None = None
    ) -> Tensor:
        """Let every token see its own row, whole; scores are scaled by ``head_dim ** -0.5``.

        Args:
            qkv: ``[num_tokens, 3 * num_heads * head_dim]``, from ``product``: query heads, key heads, value heads. May
                be overwritten.
            linear: the product's.
            batch: whose tokens they are.
            num_heads: of queries, of keys and of values.
            out: see the class.

        Returns:
            ``[num_tokens, num_heads * head_dim]``.
        """

    def attention_weights(self, qkv: Tensor, linear: Linear, batch: EncoderBatch, num_heads: int) -> list[Tensor]:
        """Tell what ``attention`` weighs the values with; called before it, with the same arguments, changing none.

        Returns:
            A row each: ``[num_heads, length, length]``, the last dimension sums to 1.
        """

    def activate(self, x: Tensor, linear: Linear, activation: Activation, *, out: Tensor | None = None) -> Tensor:
        """Apply a function to ``x [n, width]``, from ``product``, number by number; may overwrite it."""

    def add_norm(
        self, x: Tensor, linear: Linear | None, residual: Tensor | None, norm: Norm, *, out: Tensor | None = None
    ) -> Tensor:
        """Add up ``x``, the bias and the residual, and normalise over the last dimension; may overwrite ``x``.

        Args:
            x: ``[n, width]``, from ``product`` if ``linear`` is given.
            linear: the product's, or None where ``x`` is complete.
            residual: ``[n, width]``, or None; left as it is.
            norm: of the sum.
            out: see the class.

        Returns:
            ``[n, width]``.
        """

    def pool(self, x: Tensor, batch: EncoderBatch, pooling: Pooling, *, normalise: bool) -> Tensor:
        """Make one vector of each row.

        Args:
            x: ``[num_tokens, width]``.
            batch: whose tokens they are.
            pooling: how.
            normalise: divide each vector by its length; by 1e-12, if it is shorter.

        Returns:
            fp32 ``[num_rows, width]``, a tensor of its own.
        """

    def select(self, x: Tensor, indices: Tensor) -> Tensor:
        """Pick rows ``indices [n]``, integers on any device, of ``x [num_tokens, width]``: ``[n, width]``."""
