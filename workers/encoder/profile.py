"""Where an encoder's time goes, operation by operation, and how much of what the device can do that is.

An operation can take no less time than its products take at the device's product rate, nor than its bytes (each input
read once, each result written once) take at its copy rate; both are measured in the same run. Before every operation
memory larger than any cache is overwritten: on a GPU that also takes longer than the host needs to queue the operation,
so that launches are not part of the time.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headrace.kernels.encoder_table import Activation, Embeddings, EncoderBatch, EncoderOperations, Norm, Pooling
from headrace.kernels.table import Linear

_FLUSH_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}
_SQUARE = {"cuda": 8192, "cpu": 1024}
_LIMIT_RUNS = 5


@dataclass(frozen=True, slots=True)
class OperationTime:
    """All calls of one operation on one shape.

    Attributes:
        name: the operation; a product with its shape.
        calls: in a pass.
        us: of a call, the median.
        floor_us: the least that a call can take.
        share: of the pass's time.
    """

    name: str
    calls: int
    us: float
    floor_us: float
    share: float

    @property
    def of_limit(self) -> float:
        """How much of what the device can do is done: 1 is all of it."""
        return self.floor_us / self.us


@dataclass(frozen=True, slots=True)
class Limits:
    """What the device was measured to do, in operations and bytes a microsecond."""

    flops_per_us: float
    bytes_per_us: float


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    us: float
    flops: float
    num_bytes: float


class ProfiledEncoder:
    """The table, ``encoder_table.EncoderOperations``, over another one: it times every call.

    Args:
        operations: computes.
        device: where.
    """

    def __init__(self, operations: EncoderOperations, device: torch.device) -> None:
        self._operations = operations
        self._device = device
        self._flushed = torch.empty(_FLUSH_BYTES[device.type], dtype=torch.uint8, device=device)
        self._calls: list[_Call] = []

    def limits(self, dtype: torch.dtype) -> Limits:
        """Measure the device's product rate and its copy rate.

        Products are the table's own: on a CPU torch's plain ones may come from a library of half the speed.
        """
        size = _SQUARE[self._device.type]
        a, b = (torch.randn(size, size, device=self._device).to(dtype) for _ in range(2))
        linear = self._operations.pack_linear(b, None)
        half = self._flushed.numel() // 2
        source, target = self._flushed[:half], self._flushed[half:]
        product_us = min(self._time(lambda: self._operations.linear(a, linear))[1] for _ in range(_LIMIT_RUNS))
        copy_us = min(self._time(lambda: target.copy_(source))[1] for _ in range(_LIMIT_RUNS))
        return Limits(2 * size**3 / product_us, 2 * half / copy_us)

    def report(self, limits: Limits) -> list[OperationTime]:
        """Sum up what has been called since the last report, in the order of the first calls."""
        by_name: defaultdict[str, list[_Call]] = defaultdict(list)
        for call in self._calls:
            by_name[call.name].append(call)
        medians = {name: statistics.median(call.us for call in calls) for name, calls in by_name.items()}
        total = sum(medians[name] * len(calls) for name, calls in by_name.items())
        self._calls.clear()
        return [
            OperationTime(
                name=name,
                calls=len(calls),
                us=medians[name],
                floor_us=max(calls[0].flops / limits.flops_per_us, calls[0].num_bytes / limits.bytes_per_us),
                share=medians[name] * len(calls) / total,
            )
            for name, calls in by_name.items()
        ]

    def _time(self, run: Callable[[], Tensor]) -> tuple[Tensor, float]:
        self._flushed.zero_()
        if self._device.type == "cpu":
            begin_s = time.perf_counter()
            return run(), (time.perf_counter() - begin_s) * 1e6
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        result = run()
        end.record()
        end.synchronize()
        return result, begin.elapsed_time(end) * 1e3

    def _note(self, name: str, run: Callable[[], Tensor], *moved: Tensor | None, flops: float = 0) -> Tensor:
        num_bytes = sum(x.nbytes for x in moved if x is not None)
        result, us = self._time(run)
        self._calls.append(_Call(name, us, flops, num_bytes + result.nbytes))
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
        looked_up = embeddings.words.new_empty(batch.token_ids.shape[0], embeddings.words.shape[1], device="meta")
        return self._note("embed", lambda: self._operations.embed(batch, embeddings, out=out), looked_up)

    def product(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """See ``EncoderOperations``."""
        return self._product(x, lambda: self._operations.product(x, linear, out=out), linear)

    def linear(self, x: Tensor, linear: Linear, *, out: Tensor | None = None) -> Tensor:
        """See ``EncoderOperations``."""
        return self._product(x, lambda: self._operations.linear(x, linear, out=out), linear)

    def _product(self, x: Tensor, run: Callable[[], Tensor], linear: Linear) -> Tensor:
        out_features, in_features = linear.weight.shape
        weight = x.new_empty(out_features, in_features, device="meta")
        name = f"product {in_features} to {out_features}"
        return self._note(name, run, x, weight, flops=2 * x.shape[0] * out_features * in_features)

    def attention(
        self, qkv: Tensor, linear: Linear, batch: EncoderBatch, num_heads: int, *, out: Tensor | None = None
    ) -> Tensor:
        """See ``EncoderOperations``."""
        flops = 4 * (qkv.shape[1] // 3) * sum(length * length for length in batch.lengths)
        return self._note(
            "attention",
            lambda: self._operations.attention(qkv, linear, batch, num_heads, out=out),
            qkv,
            flops=flops,
        )

    def attention_weights(self, qkv: Tensor, linear: Linear, batch: EncoderBatch, num_heads: int) -> list[Tensor]:
        """See ``EncoderOperations``; not timed."""
        return self._operations.attention_weights(qkv, linear, batch, num_heads)

    def activate(self, x: Tensor, linear: Linear, activation: Activation, *, out: Tensor | None = None) -> Tensor:
        """See ``EncoderOperations``."""
        return self._note(activation, lambda: self._operations.activate(x, linear, activation, out=out), x)

    def add_norm(
        self, x: Tensor, linear: Linear | None, residual: Tensor | None, norm: Norm, *, out: Tensor | None = None
    ) -> Tensor:
        """See ``EncoderOperations``."""
        return self._note(
            "add and norm", lambda: self._operations.add_norm(x, linear, residual, norm, out=out), x, residual
        )

    def pool(self, x: Tensor, batch: EncoderBatch, pooling: Pooling, *, normalise: bool) -> Tensor:
        """See ``EncoderOperations``."""
        read = x if pooling in ("mean", "max") else None
        return self._note(
            f"pool {pooling}", lambda: self._operations.pool(x, batch, pooling, normalise=normalise), read
        )

    def select(self, x: Tensor, indices: Tensor) -> Tensor:
        """See ``EncoderOperations``; not timed."""
        return self._operations.select(x, indices)
