"""The table of operations that models are written over, and the ragged batch that they share.

A model calls these and nothing else, so that a table for another device replaces ``reference`` without a change to
any model. No operation makes the host wait for the device: whatever the host must know (lengths, offsets) is in the
batch, in Python numbers, before the step begins.

A batch is ragged: the tokens of all rows lie behind each other, ``num_tokens`` in all, without padding; a row that
decodes brings one token, a row that prefills a chunk of its prompt.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, dtype


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one row's context that lie behind each other in the memory: pages with consecutive numbers.

    Attributes:
        start: position of the first of them in the row.
        end: position behind the last of them.
        views: a layer each, keys and values, both of shape ``[1, num_kv_heads, end - start, head_dim]``.
    """

    start: int
    end: int
    views: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one row whose attention is computed together.

    Attributes:
        first_query: index of its first token in the batch.
        num_queries: its tokens in the batch, >= 1; they are the last ones of its context.
        pieces: its context up to and including these tokens, in order. Where there are several queries, the last
            piece is their own, so that it alone is causal; what is new in it is written during the step.
    """

    first_query: int
    num_queries: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Ragged:
    """What one step computes.

    Attributes:
        token_ids: int64 ``[num_tokens]``.
        positions: int64 ``[num_tokens]``, each token's place in its own row, from 0.
        slots: int64 ``[num_tokens]``, where in the key-value memory its key and value go.
        sampled: int64 ``[num_sampled]``, indices of the tokens whose logits are wanted.
        segments: the rows, in the order of their tokens; a row whose chunk crosses a border of pieces has several.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    sampled: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight as its table wants it.

    Attributes:
        weight: made by ``pack_linear`` from ``[out_features, in_features]``; its layout is the table's own affair.
        bias: ``[out_features]``, or None.
        writes_out: whether ``linear`` writes where it is told; a library may insist on memory of its own.
    """

    weight: Tensor
    bias: Tensor | None
    writes_out: bool = True


class Operations(Protocol):
    """The table. Activations and weights have one dtype, fp32 or bf16, unless said otherwise.

    Every operation with a result takes ``out``, of the result's shape and contiguous: the result is written there and
    returned. Without it, it is a tensor of its own.
    """

    def step(self, num_tokens: int, num_sampled: int) -> AbstractContextManager[None]:
        """Hold the memory of one step's results; they may be overwritten by the next step.

        Args:
            num_tokens: of the batch.
            num_sampled: tokens whose logits are wanted.
        """

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Lay a weight out for ``linear``, once, at loading.

        Args:
            weight: ``[out_features, in_features]``.
            bias: ``[out_features]``, or None.
        """

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Multiply ``x [num_tokens, in_features]`` by a weight: ``[num_tokens, out_features]``, contiguous."""

    def embedding(self, token_ids: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Look up int64 ``token_ids [num_tokens]`` in ``weight [vocab, hidden]``: ``[num_tokens, hidden]``."""

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Normalise by the root mean square over the last dimension, and scale.

        Args:
            x: ``[num_tokens, hidden]``.
            weight: ``[hidden]``.
            eps: added to the mean square.
            residual: ``[num_tokens, hidden]``; if given, ``x`` is added into it in place and the sum is normalised.
            out: see the class.

        Returns:
            ``[num_tokens, hidden]``.
        """

    def layer_norm(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        *,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Normalise to mean 0 and variance 1 over the last dimension, scale and shift.

        Args:
            x: ``[num_tokens, hidden]``.
            weight: ``[hidden]``.
            bias: ``[hidden]``.
            eps: added to the variance, which is the biased one (its divisor is ``hidden``).
            residual: ``[num_tokens, hidden]``; if given, ``x`` is added into it in place and the sum is normalised.
            out: see the class.

        Returns:
            ``[num_tokens, hidden]``.
        """

    def head_norm(self, x: Tensor, weight: Tensor, eps: float) -> None:
        """Normalise each head for itself in place, as ``rms_norm`` does a token.

        Args:
            x: ``[num_tokens, num_heads, head_dim]``, may be a view.
            weight: ``[head_dim]``, the same for all heads.
            eps: added to the mean square.
        """

    def rotary_table(
        self, positions: Tensor, inv_freq: Tensor, result: dtype, *, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Make the step's rotations, once for all layers.

        Args:
            positions: int64 ``[num_tokens]``.
            inv_freq: fp32 ``[rotary_dim / 2]``, radians a token.
            result: dtype of the result; angles are computed in fp32 in any case.
            scale: multiplies cosines and sines.

        Returns:
            Cosines and sines, both ``[num_tokens, 1, rotary_dim / 2]``.
        """

    def rotary(self, x: Tensor, table: tuple[Tensor, Tensor]) -> None:
        """Rotate the first ``rotary_dim`` numbers of each head in place; the others stay.

        The two halves of what is rotated turn against each other: number ``i`` with ``i + rotary_dim / 2``, the
        layout of Hugging Face's Llama weights. A model whose weights pair neighbours reorders them when it loads.

        Args:
            x: ``[num_tokens, num_heads, head_dim]``, may be a view; ``rotary_dim <= head_dim``.
            table: from ``rotary_table``.
        """

    def write_kv(self, kv: Tensor, new: Tensor, batch: Ragged) -> None:
        """Write the batch's keys and values into a layer's memory.

        Args:
            kv: ``[2, num_slots, num_kv_heads, head_dim]``.
            new: ``[num_tokens, 2, num_kv_heads, head_dim]``, keys before values.
            batch: says which slots.
        """

    def attention(
        self, query: Tensor, layer: int, batch: Ragged, *, window: int | None = None, out: Tensor | None = None
    ) -> Tensor:
        """Let every token see its own row's context up to itself; scores are scaled by ``head_dim ** -0.5``.

        Args:
            query: ``[num_tokens, num_kv_heads, group, head_dim]``; the group shares one head of keys and values.
            layer: whose keys and values, written before.
            batch: says which tokens belong to which row.
            window: tokens that a token sees at most, itself among them, >= 1: the last ones; None for all.
            out: see the class.

        Returns:
            ``[num_tokens, num_kv_heads * group * head_dim]``.
        """

    def silu_mul(self, gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Gate: from ``[num_tokens, 2 * inner]``, gate before up, make ``silu(gate) * up [num_tokens, inner]``."""

    def gelu(self, x: Tensor, approximate: Literal["none", "tanh"], *, out: Tensor | None = None) -> Tensor:
        """Apply the Gaussian error linear unit to ``x [num_tokens, inner]``; may overwrite it.

        Args:
            x: any shape.
            approximate: "none" for ``x * Phi(x)``; "tanh" for
                ``x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))``.
            out: see the class.
        """

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add ``y`` into ``x`` in place, both ``[num_tokens, hidden]``."""

    def select(self, x: Tensor, indices: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Pick rows ``indices``, int64 ``[num_sampled]``, of ``x [num_tokens, hidden]``."""
