"""What one kind of step writes: which operation makes which result, and which reads it last.

A step is traced once, while it is computed, and tells from then on what a step of its kind writes for any lengths.
Whose memory that is, and where it lies, is ``planned_steps``' affair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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


class StepTrace:
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
