"""The table of operations that models are written over, and what they know of a batch.

A model calls these and nothing else, so that a table for another device replaces ``reference`` without a change to
any model. No operation makes the host wait for the device: whatever the host must know (lengths, offsets) is in the
batch, in Python numbers, before the step begins.

A batch is ragged: the tokens of all rows lie behind each other, ``num_tokens`` in all, without padding; a row that
decodes brings one token, a row that prefills a chunk of its prompt. Where a row's keys and values lie is known to the
table alone, which is told when the step begins: models only name the layer.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from torch import Tensor, dtype


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step computes, as far as a model must know it. A table may want more: then its batches say more.

    Attributes:
        token_ids: int64 ``[num_tokens]``.
        positions: int64 or int32 ``[num_tokens]``, each token's place in its own row, from 0.
        sampled: int64 or int32 ``[num_sampled]``, indices of the tokens whose logits are wanted; on the device.
    """

    token_ids: Tensor
    positions: Tensor
    sampled: Tensor


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMSNorm of each query and key head for itself, before the rotation.

    Attributes:
        query: ``[head_dim]``, the same for all heads.
        key: ``[head_dim]``, likewise.
        eps: added to the mean square.
    """

    query: Tensor
    key: Tensor
    eps: float


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


class Packer(Protocol):
    """What loading asks of a table."""

    def hold(self, weight: Tensor) -> Tensor:
        """Bring a weight to where the operations read it, once, at loading; it may be there already."""

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """Lay a weight out for ``linear``, once, at loading.

        Args:
            weight: ``[out_features, in_features]``.
            bias: ``[out_features]``, or None.
        """


class Operations(Packer, Protocol):
    """The table. Activations and weights have one dtype, fp32 or bf16, unless said otherwise.

    Every operation with a result takes ``out``, of the result's shape and contiguous: the result is written there and
    returned. Without it, it is a tensor of its own. Operations that are several in one also take room for what lies
    between them, and may leave it as it is; it overlaps neither what is read nor the result.
    """

    def take_spare_bytes(self, num_bytes: int) -> bool:
        """Take memory, at loading, to keep what every step could compute; False: so much is not left, none is taken."""

    def pack_gate_up(
        self, gate: Tensor, up: Tensor, gate_bias: Tensor | None = None, up_bias: Tensor | None = None
    ) -> Linear:
        """Lay two weights of one input out for ``norm_gate_up``, once, at loading.

        Args:
            gate: ``[inner, in_features]``.
            up: ``[inner, in_features]``.
            gate_bias: ``[inner]``, or None.
            up_bias: ``[inner]``; None where the gate has none.
        """

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """Multiply ``x [num_tokens, in_features]`` by a weight: ``[num_tokens, out_features]``, contiguous."""

    def norm_linear(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        linear: Linear,
        *,
        normed: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Normalise as ``rms_norm`` does, and multiply: ``[num_tokens, out_features]``.

        Args:
            x: ``[num_tokens, in_features]``.
            weight: ``[in_features]``, of the norm.
            eps: added to the mean square.
            linear: from ``pack_linear``.
            normed: room for the normed x.
            out: see the class.
        """

    def norm_linear_for_sampled(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        linear: Linear,
        num_features: int,
        *,
        normed: Tensor | None = None,
        picked: Tensor | None = None,
        product: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Do as ``norm_linear`` does, where some features are wanted of the batch's sampled tokens alone.

        Args:
            x: ``[num_tokens, in_features]``, of all tokens of the batch.
            weight: ``[in_features]``, of the norm.
            eps: added to the mean square.
            linear: from ``pack_linear``.
            num_features: the first ones, which mean nothing of a token that is not sampled.
            normed: room for the normed x.
            picked: room for ``[num_sampled, in_features]``.
            product: room for ``[num_sampled, num_features]``.
            out: see the class.

        Returns:
            ``[num_tokens, out_features]``.
        """

    def norm_gate_up(
        self,
        x: Tensor,
        weight: Tensor,
        eps: float,
        gate_up: Linear,
        *,
        normed: Tensor | None = None,
        product: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Normalise as ``rms_norm`` does, multiply, and make ``silu(gate) * up``: ``[num_tokens, inner]``.

        Args:
            x: ``[num_tokens, in_features]``.
            weight: ``[in_features]``, of the norm.
            eps: added to the mean square.
            gate_up: from ``pack_gate_up``.
            normed: room for the normed x.
            product: room for ``[num_tokens, 2 * inner]``.
            out: see the class.
        """

    def linear_add(self, x: Tensor, linear: Linear, residual: Tensor, *, product: Tensor | None = None) -> None:
        """Add a product of ``x [num_tokens, in_features]`` into the residual stream, in place.

        Args:
            x: ``[num_tokens, in_features]``.
            linear: from ``pack_linear``.
            residual: ``[num_tokens, out_features]``.
            product: room for the same.
        """

    def embedding(self, token_ids: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Look up integers ``token_ids [num_tokens]`` in ``weight [vocab, hidden]``: ``[num_tokens, hidden]``."""

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

    def rotary_table(
        self, positions: Tensor, inv_freq: Tensor, result: dtype, *, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Make the step's rotations, once for all layers.

        Args:
            positions: as the batch has them.
            inv_freq: fp32 ``[rotary_dim / 2]``, radians a token.
            result: dtype of activations; angles are computed in fp32 in any case.
            scale: multiplies cosines and sines.

        Returns:
            Cosines and sines, for ``rotary_attention``; their layout is the table's own affair.
        """

    def rotary_attention(
        self,
        qkv: Tensor,
        layer: int,
        num_heads: int,
        *,
        rotary: tuple[Tensor, Tensor] | None = None,
        norm: HeadNorm | None = None,
        window: int | None = None,
        only_sampled: bool = False,
        seen: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Norm and rotate queries and keys, write the batch's keys and values to their places, and attend.

        Of each head the first ``rotary_dim`` numbers are rotated, the others stay. The two halves of what is rotated
        turn against each other: number ``i`` with ``i + rotary_dim / 2``, the layout of Hugging Face's Llama weights.
        A model whose weights pair neighbours reorders them when it loads.

        Then every token sees its own row's context up to itself; scores are scaled by ``head_dim ** -0.5``.

        Args:
            qkv: ``[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]``, contiguous: query heads, key heads, value
                heads; neighbouring query heads share one head of keys and values. May be overwritten.
            layer: whose keys and values these are.
            num_heads: query heads.
            rotary: from ``rotary_table``; None for models without rotation.
            norm: None for models without.
            window: tokens that a token sees at most, itself among them, >= 1: the last ones; None for all.
            only_sampled: what the batch's sampled tokens see is wanted alone; all keys and values are written.
            seen: where it is, room for ``[num_tokens, num_heads * head_dim]``.
            out: see the class.

        Returns:
            ``[num_tokens, num_heads * head_dim]``, or as many rows as tokens are sampled.
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
        """Pick rows ``indices [num_sampled]``, integers, of ``x [num_tokens, hidden]``."""


B_contra = TypeVar("B_contra", bound=Batch, contravariant=True)


class Table(Operations, Protocol[B_contra]):
    """The operations, and the step that they belong to."""

    def step(self, batch: B_contra) -> AbstractContextManager[None]:
        """Compute a batch: within it, operations know where its rows' keys and values lie.

        Results hold until the next step begins, which may overwrite them.
        """
