"""A table whose results lie where a plan says: it hands each operation of another table the tensor to write into.

The first step of a kind (with logits, without) is traced: which operation makes which result, and which reads it last.
From then on results are laid out by these lifetimes for the lengths at hand (``memory.planner``), and nothing is
allocated in a step whose lengths have been seen before. A model knows nothing of it, but must keep to the table's
rule: it computes by its operations only, always the same ones in the same order.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.table import Batch, HeadNorm, Linear, Table

B = TypeVar("B", bound=Batch)

#: Gives a step's tensors memory: called with the lengths and, if these are new, what is to be laid out.
Place = Callable[[tuple[int, int], Callable[[], Sequence["Result"]]], Sequence[Tensor]]


class Result(NamedTuple):
    """What one operation writes.

    Attributes:
        first_op: number of that operation in the step.
        last_op: number of the last operation that reads it.
        shape: its shape.
        dtype: its dtype.
    """

    first_op: int
    last_op: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Between(NamedTuple):
    """What an operation that is several in one writes on its way.

    Attributes:
        width: numbers of a row.
        dtype: its dtype.
        per_sampled: whether sampled tokens alone have a row; else each that the operation reads has one.
    """

    width: int
    dtype: torch.dtype
    per_sampled: bool = False


@dataclass(slots=True)
class _Traced:
    first_op: int
    last_op: int
    width: tuple[int, ...]
    dtype: torch.dtype
    per_sampled: bool  # a row each for sampled tokens only
    planned: bool


class _Trace:
    """The results of one kind of step, for any lengths."""

    def __init__(self) -> None:
        self._results: list[_Traced] = []
        self._num_ops = 0
        self._by_storage: dict[int, _Traced] = {}

    def note(
        self,
        reads: Sequence[Tensor | None],
        result: Tensor | None,
        *,
        selects: bool,
        planned: bool,
        between: Sequence[Between] = (),
    ) -> None:
        """Note an operation; its result has a row for each of the first tensor that it reads, unless it selects.

        One that is several in one has rows between them. All are kept until it is done: a kernel that joins the last
        two of three reads the first one's rows while it writes the third one's.
        """
        found = [self._by_storage.get(x.untyped_storage().data_ptr()) for x in reads if x is not None]
        done = self._num_ops + len(between)
        for width, dtype, per_sampled in between:
            per_sampled = per_sampled or (found[0] is not None and found[0].per_sampled)
            self._results.append(_Traced(self._num_ops, done, (width,), dtype, per_sampled, planned=True))
            self._num_ops += 1
        for traced in found:
            if traced is not None:
                traced.last_op = self._num_ops
        if result is not None:
            per_sampled = selects or (found[0] is not None and found[0].per_sampled)
            traced = _Traced(self._num_ops, self._num_ops, tuple(result.shape[1:]), result.dtype, per_sampled, planned)
            self._results.append(traced)
            self._by_storage[result.untyped_storage().data_ptr()] = traced
        self._num_ops += 1

    def close(self) -> None:
        """End the trace: what the last operation wrote is read by whoever asked for the step."""
        self._by_storage.clear()

    def results(self, num_tokens: int, num_sampled: int) -> list[Result]:
        """The results that are planned, in the order in which they are written."""
        return [
            Result(
                traced.first_op,
                traced.last_op,
                (num_sampled if traced.per_sampled else num_tokens, *traced.width),
                traced.dtype,
            )
            for traced in self._results
            if traced.planned
        ]


class PlannedOperations(Generic[B]):
    """A table over another one.

    Args:
        operations: computes.
        place: gives results memory; until it is known, they have memory of their own.
    """

    def __init__(self, operations: Table[B], place: Place | None = None) -> None:
        self._operations = operations
        self._place = place
        self._traces: dict[bool, _Trace] = {}
        self._trace: _Trace | None = None
        self._outs: Iterator[Tensor] = iter(())

    def place_in(self, place: Place) -> None:
        """Give results memory from now on."""
        self._place = place

    def results(self, num_tokens: int, num_sampled: int) -> Sequence[Result]:
        """Tell what a step of such lengths writes, once a step of its kind has been computed."""
        trace = self._traces.get(num_sampled > 0)
        if trace is None:
            raise KernelError(f"no step {'with' if num_sampled else 'without'} logits has been computed yet")
        return trace.results(num_tokens, num_sampled)

    def lay_out(self, lengths: tuple[int, int]) -> Sequence[Tensor]:
        """Give results the memory that a step of such lengths writes, as beginning the step does.

        Args:
            lengths: numbers of tokens and of sampled ones.

        Raises:
            KernelError: no step of that kind has been computed yet, or nobody gives results memory.
        """
        if self._place is None:
            raise KernelError("results have memory of their own")
        return self._place(lengths, lambda: self.results(*lengths))

    def knows(self, num_sampled: int) -> bool:
        """Whether a step that samples so many tokens, or like it, has been computed."""
        return (num_sampled > 0) in self._traces

    @contextmanager
    def step(self, batch: B) -> Iterator[None]:
        """Hold the memory of one step's results; they are overwritten by the next step."""
        lengths = batch.token_ids.shape[0], batch.sampled.shape[0]
        kind = lengths[1] > 0
        trace = self._traces.get(kind)
        try:
            with self._operations.step(batch):
                if trace is None:
                    self._trace = _Trace()
                    yield
                    # Only now: a step that raised has not shown all of its operations.
                    self._trace.close()
                    self._traces[kind] = self._trace
                elif self._place is None:
                    yield
                else:
                    self._outs = iter(self._place(lengths, lambda: trace.results(*lengths)))
                    yield
        finally:
            self._trace = None
            self._outs = iter(())

    def _note(
        self,
        *reads: Tensor | None,
        result: Tensor | None = None,
        selects: bool = False,
        planned: bool = True,
        between: Sequence[Between] = (),
    ) -> None:
        if self._trace is not None:
            self._trace.note(reads, result, selects=selects, planned=planned, between=between)

    def _out(self, out: Tensor | None) -> Tensor | None:
        return next(self._outs, None) if out is None else out

    def hold(self, weight: Tensor) -> Tensor:
        """See ``Operations``."""
        return self._operations.hold(weight)

    def affords(self, num_bytes: int) -> bool:
        """See ``Operations``."""
        return self._operations.affords(num_bytes)

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """See ``Operations``."""
        return self._operations.pack_linear(weight, bias)

    def pack_gate_up(
        self, gate: Tensor, up: Tensor, gate_bias: Tensor | None = None, up_bias: Tensor | None = None
    ) -> Linear:
        """See ``Operations``."""
        return self._operations.pack_gate_up(gate, up, gate_bias, up_bias)

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """See ``Operations``."""
        result = self._operations.linear(x, linear, out=self._out(out) if linear.writes_out else None)
        self._note(x, result=result, planned=linear.writes_out)
        return result

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
        """See ``Operations``."""
        normed, out = self._out(normed), self._out(out) if linear.writes_out else None
        result = self._operations.norm_linear(x, weight, eps, linear, normed=normed, out=out)
        self._note(x, result=result, planned=linear.writes_out, between=[Between(x.shape[1], x.dtype)])
        return result

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
        """See ``Operations``."""
        normed, picked, product = self._out(normed), self._out(picked), self._out(product)
        result = self._operations.norm_linear_for_sampled(
            *(x, weight, eps, linear, num_features),
            normed=normed,
            picked=picked,
            product=product,
            out=self._out(out) if linear.writes_out else None,
        )
        sampled = [Between(width, x.dtype, per_sampled=True) for width in (x.shape[1], num_features)]
        self._note(x, result=result, planned=linear.writes_out, between=[Between(x.shape[1], x.dtype), *sampled])
        return result

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
        """See ``Operations``."""
        normed, product = self._out(normed), self._out(product) if gate_up.writes_out else None
        result = self._operations.norm_gate_up(
            x, weight, eps, gate_up, normed=normed, product=product, out=self._out(out)
        )
        between = [Between(x.shape[1], x.dtype), Between(2 * result.shape[1], x.dtype)]
        self._note(x, result=result, between=between if gate_up.writes_out else between[:1])
        return result

    def linear_add(self, x: Tensor, linear: Linear, residual: Tensor, *, product: Tensor | None = None) -> None:
        """See ``Operations``."""
        product = self._out(product) if linear.writes_out else None
        self._operations.linear_add(x, linear, residual, product=product)
        self._note(x, residual, between=[Between(residual.shape[1], x.dtype)] if linear.writes_out else ())

    def embedding(self, token_ids: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
        """See ``Operations``."""
        result = self._operations.embedding(token_ids, weight, out=self._out(out))
        self._note(token_ids, result=result)
        return result

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        """See ``Operations``."""
        result = self._operations.rms_norm(x, weight, eps, residual=residual, out=self._out(out))
        self._note(x, residual, result=result)
        return result

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
        """See ``Operations``."""
        result = self._operations.layer_norm(x, weight, bias, eps, residual=residual, out=self._out(out))
        self._note(x, residual, result=result)
        return result

    def rotary_table(
        self, positions: Tensor, inv_freq: Tensor, result: torch.dtype, *, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """See ``Operations``."""
        return self._operations.rotary_table(positions, inv_freq, result, scale=scale)

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
        """See ``Operations``."""
        seen = self._out(seen) if only_sampled else None
        result = self._operations.rotary_attention(
            *(qkv, layer, num_heads),
            rotary=rotary,
            norm=norm,
            window=window,
            only_sampled=only_sampled,
            seen=seen,
            out=self._out(out),
        )
        between = [Between(result.shape[1], result.dtype)] if only_sampled else ()
        self._note(qkv, result=result, selects=only_sampled, between=between)
        return result

    def silu_mul(self, gate_up: Tensor, *, out: Tensor | None = None) -> Tensor:
        """See ``Operations``."""
        result = self._operations.silu_mul(gate_up, out=self._out(out))
        self._note(gate_up, result=result)
        return result

    def gelu(self, x: Tensor, approximate: Literal["none", "tanh"], *, out: Tensor | None = None) -> Tensor:
        """See ``Operations``."""
        result = self._operations.gelu(x, approximate, out=self._out(out))
        self._note(x, result=result)
        return result

    def add(self, x: Tensor, y: Tensor) -> None:
        """See ``Operations``."""
        self._operations.add(x, y)
        self._note(x, y)

    def select(self, x: Tensor, indices: Tensor, *, out: Tensor | None = None) -> Tensor:
        """See ``Operations``."""
        result = self._operations.select(x, indices, out=self._out(out))
        self._note(x, result=result, selects=True)
        return result
