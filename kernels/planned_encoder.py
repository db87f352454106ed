"""An encoders' table whose results lie where it is told: it hands each operation of another table what to write into.

One forward pass is traced: which operation makes which result, and which reads it last. From then on the results of a
pass are given memory from outside (``memory.token_arena`` lays it out). A model knows nothing of it, but must compute
the same operations in the same order whatever its rows are. Outside of a pass, operations have memory of their own.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headrace.kernels.encoder_table import Activation, Embeddings, EncoderBatch, EncoderOperations, Norm, Pooling
from headrace.kernels.table import Linear


@dataclass(slots=True)
class Written:
    """What one operation of a pass writes, ``[num_tokens, width]``, and until which operation it is read."""

    first_op: int
    last_op: int
    width: int
    dtype: torch.dtype


@dataclass(slots=True)
class EncoderTrace:
    """One forward pass, for any lengths.

    Attributes:
        written: results that may lie where they are told, in the order in which they are written.
        slots: for each operation the index of its result in ``written``; None where it writes into an argument, or
            insists on memory of its own, and for what the pass gives back: that outlives it.
        last: the operation that makes what the pass gives back; None where it insists on memory of its own.
        given: what that is.
    """

    written: list[Written] = field(default_factory=list)
    slots: list[int | None] = field(default_factory=list)
    last: int | None = None
    given: Written | None = None
    _by_storage: dict[int, Written] = field(default_factory=dict)
    # Kept alive, or the memory of one result would be another's.
    _held: list[Tensor] = field(default_factory=list)

    def note(self, reads: Sequence[Tensor | None], result: Tensor, *, free: bool) -> None:
        """Note an operation; ``free``: it writes where it is told."""
        number, key = len(self.slots), result.untyped_storage().data_ptr()
        for x in reads:
            known = None if x is None else self._by_storage.get(x.untyped_storage().data_ptr())
            if known is not None:
                known.last_op = number
        self._held.append(result)
        if key in self._by_storage:
            self.slots.append(None)
            return
        made = self._by_storage[key] = Written(number, number, result.shape[1], result.dtype)
        self.slots.append(len(self.written) if free else None)
        if free:
            self.written.append(made)

    def close(self, result: Tensor) -> None:
        """End the trace: what is given back has memory of its own."""
        last = self._by_storage.get(result.untyped_storage().data_ptr())
        if last in self.written:
            index = self.written.index(last)
            del self.written[index]
            self.last, self.given = self.slots.index(index), last
            self.slots = [
                None if slot == index else slot - 1 if slot is not None and slot > index else slot
                for slot in self.slots
            ]
        self._by_storage.clear()
        self._held.clear()


class _Pass(threading.local):
    """What a thread is computing."""

    trace: EncoderTrace | None = None
    outs: Iterator[Tensor | None] | None = None


class PlannedEncoder:
    """The table, ``encoder_table.EncoderOperations``, over another one; each thread has a pass of its own.

    Args:
        operations: computes.
        device: where.
    """

    def __init__(self, operations: EncoderOperations, device: torch.device) -> None:
        self.device = device
        self._operations = operations
        self._pass = _Pass()

    @contextmanager
    def traced(self) -> Iterator[EncoderTrace]:
        """Trace the pass that this thread computes; whoever asked must ``close`` the trace."""
        trace = self._pass.trace = EncoderTrace()
        try:
            yield trace
        finally:
            self._pass.trace = None

    @contextmanager
    def placed(self, trace: EncoderTrace, memory: Sequence[Tensor], result: Tensor | None = None) -> Iterator[None]:
        """Let this thread's pass write where it is told.

        Args:
            trace: of such a pass.
            memory: a tensor for each of ``trace.written``.
            result: for what the pass gives back; None for a tensor of its own.
        """
        outs = [None if slot is None else memory[slot] for slot in trace.slots]
        if trace.last is not None:
            outs[trace.last] = result
        self._pass.outs = iter(outs)
        try:
            yield
        finally:
            self._pass.outs = None

    def _out(self, out: Tensor | None) -> Tensor | None:
        given = None if self._pass.outs is None else next(self._pass.outs)
        return given if out is None else out

    def _note(self, *reads: Tensor | None, result: Tensor, free: bool = True) -> Tensor:
        if self._pass.trace is not None:
            self._pass.trace.note(reads, result, free=free)
        return result

    def hold(self, weight: Tensor) -> Tensor:
        """See ``EncoderOperations``."""
        return self._operations.hold(weight)

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """See ``EncoderOperations``."""
        return self._operations.pack_linear(weight, bias)

    def pack(
        self, token_ids: Tensor, positions: Tensor, type_ids: Tensor | None, lengths: Sequence[int]
    ) -> EncoderBatch:
        """See ``EncoderOperations``."""
        return self._operations.pack(token_ids, positions, type_ids, lengths)

    def embed(self, batch: EncoderBatch, embeddings: Embeddings, *, out: Tensor | None = None) -> Tensor:
        """See ``EncoderOperations``."""
        return self._note(result=self._operations.embed(batch, embeddings, out=self._out(out)))

    def product(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """See ``EncoderOperations``."""
        result = self._operations.product(x, linear, out=self._out(out))
        return self._note(x, result=result, free=linear.writes_out)

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """See ``EncoderOperations``."""
        result = self._operations.linear(x, linear, out=self._out(out))
        return self._note(x, result=result, free=linear.writes_out)

    def attention(
        self, qkv: Tensor, linear: Linear, batch: EncoderBatch, num_heads: int, *, out: Tensor | None = None
    ) -> Tensor:
        """See ``EncoderOperations``."""
        result = self._operations.attention(qkv, linear, batch, num_heads, out=self._out(out))
        return self._note(qkv, result=result)

    def attention_weights(self, qkv: Tensor, linear: Linear, batch: EncoderBatch, num_heads: int) -> list[Tensor]:
        """See ``EncoderOperations``; never in a pass."""
        return self._operations.attention_weights(qkv, linear, batch, num_heads)

    def activate(self, x: Tensor, linear: Linear, activation: Activation, *, out: Tensor | None = None) -> Tensor:
        """See ``EncoderOperations``."""
        return self._note(x, result=self._operations.activate(x, linear, activation, out=self._out(out)))

    def add_norm(
        self, x: Tensor, linear: Linear | None, residual: Tensor | None, norm: Norm, *, out: Tensor | None = None
    ) -> Tensor:
        """See ``EncoderOperations``."""
        result = self._operations.add_norm(x, linear, residual, norm, out=self._out(out))
        return self._note(x, residual, result=result)

    def pool(self, x: Tensor, batch: EncoderBatch, pooling: Pooling, *, normalise: bool) -> Tensor:
        """See ``EncoderOperations``; never in a pass."""
        return self._operations.pool(x, batch, pooling, normalise=normalise)

    def select(self, x: Tensor, indices: Tensor) -> Tensor:
        """See ``EncoderOperations``; never in a pass."""
        return self._operations.select(x, indices)
