"""Ways to batch for an encoder that computes every batch for real, while arrivals and the clock are simulated.

A trial takes as long as its batches take to compute, and what is timed is nothing else: no process waits for another,
no text is tokenised, nothing goes through Redis. A batch's wall time is what the clock moves on by.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from headrace.config import Batching, Objective, Settings
from headrace.errors import ConfigurationError
from headrace.testing.arrival_trial import SHARE
from headrace.testing.encoder_worker import EncoderWorker
from headrace.testing.queue_simulation import Setup, latencies_ms, poisson_arrivals
from headrace.testing.rate_search import critical_rate, percentile
from headrace.workers.costs.table import CostTable
from headrace.workers.encoder.process import PACKED_LENGTH
from headrace.workers.engine.measurement import Extent
from headrace.workers.scheduler.partition import Limits
from headrace.workers.scheduler.process import ENCODER_BATCH_ROWS
from headrace.workers.scheduler.strategy import Strategy
from headrace.workers.scheduler.trigger import Patience

#: Of the paper's experiment, and of every way here whose name does not say otherwise, but the fleet's own.
PAPER_ROWS: Final = 20
#: Of a trial, however short: of fewer a p99 says little.
_MIN_REQUESTS: Final = 100
_WARM_UP_SEED: Final = -1


@dataclass(frozen=True, slots=True)
class EncoderWay:
    """One way to batch.

    Attributes:
        name: in rows.
        batching: of the strategy.
        objective: of the strategy.
        pads: whether batches are computed padded.
        max_rows: of a batch.
        window: requests that are cut at once.
        max_backlog_batches: that are cut ahead of the worker; 0: a batch is cut when the worker is free.
        held_from: as of ``queue_simulation.Setup``.
    """

    name: str
    batching: Batching
    objective: Objective
    pads: bool
    max_rows: int
    window: int
    max_backlog_batches: int
    held_from: float = math.inf


def encoder_ways() -> Mapping[str, EncoderWay]:
    """All there are, by name.

    A name that ends with a number of rows may put as many into a batch as a fleet's encoders take. ``fleet`` is what a
    fleet does where nothing is set. One more batch than may wait in Redis is cut ahead, which waits in the worker; with
    one in Redis, too, the last one of a window stays while it is not full.
    """
    s, most = Settings(), ENCODER_BATCH_ROWS
    ways = (
        EncoderWay("naive", "naive", "total", True, PAPER_ROWS, PAPER_ROWS, 0),
        EncoderWay(f"naive-{most}", "naive", "total", True, most, most, 0),
        EncoderWay("none", "none", "total", True, 1, 1, 0),
        EncoderWay("sorted", "sorted", "total", True, PAPER_ROWS, s.window, 0),
        EncoderWay("dp-total", "dp", "total", True, PAPER_ROWS, s.window, 0),
        EncoderWay(f"dp-total-{most}", "dp", "total", True, most, s.window, 0),
        EncoderWay("dp-mean", "dp", "mean", True, PAPER_ROWS, s.window, 0),
        EncoderWay("packed", "naive", "total", False, PAPER_ROWS, PAPER_ROWS, 0),
        EncoderWay("packed-dp", "packed", "total", False, PAPER_ROWS, s.window, 0),
        EncoderWay(f"packed-dp-{most}", "packed", "total", False, most, s.window, 0),
        EncoderWay("fleet", s.batching, s.objective, False, most, s.window, s.max_backlog_batches + 1, held_from=2),
    )
    return {way.name: way for way in ways}


class EncoderRates:
    """Trials on one encoder.

    Args:
        worker: computes.
        lengths: of texts in tokens, uniform between two.
        goal_ms: what 99 of 100 requests must keep to.
        trial_s: for how long requests arrive in one trial, longer where so few would come that a p99 says nothing.
        measure_ms: computing time for the costs of each runtime.
    """

    def __init__(
        self, worker: EncoderWorker, lengths: tuple[int, int], goal_ms: float, trial_s: float, measure_ms: float
    ) -> None:
        self._worker = worker
        self._lengths = lengths
        self._goal_ms = goal_ms
        self._trial_s = trial_s
        extent = Extent(lengths[1], ENCODER_BATCH_ROWS, 2 * PAPER_ROWS * lengths[1], PACKED_LENGTH)
        self._tables = {pads: worker.costs(extent, measure_ms, pads=pads) for pads in (True, False)}

    @property
    def tables(self) -> Mapping[bool, CostTable]:
        """What was measured, with cells of the padded runtime (True) and of the worker's own."""
        return self._tables

    @property
    def first_guess(self) -> float:
        """Requests a second that the worker would end one by one, by its costs."""
        return 1000 / self._tables[False].packed_cost(sum(self._lengths) // 2)

    def critical_rate(self, way: EncoderWay, seed: int, guess: float, *, stride: float, precision: float) -> float:
        """The largest rate, in requests/s, at which p99 keeps to the goal.

        Args:
            way: to batch.
            seed: of arrivals and lengths, which are the same at every rate but for their pace.
            guess: where to begin.
            stride: as ``rate_search.critical_rate`` has it.
            precision: as there.
        """

        def holds(rate_per_s: float) -> bool:
            return percentile(self._run(way, rate_per_s, seed, self._goal_ms), SHARE) <= self._goal_ms

        return critical_rate(holds, guess, stride=stride, precision=precision)

    def warm_up(self, way: EncoderWay, rate_per_s: float, duration_s: float) -> None:
        """Let sizes come, be compiled and be captured that the trials will meet."""
        self._run(way, rate_per_s, _WARM_UP_SEED, math.inf, duration_s)

    def latencies_ms(self, way: EncoderWay, rate_per_s: float, seed: int) -> list[float]:
        """Of one trial, whether it keeps to the goal or not."""
        return self._run(way, rate_per_s, seed, math.inf)

    def _run(
        self, way: EncoderWay, rate_per_s: float, seed: int, goal_ms: float, duration_s: float | None = None
    ) -> list[float]:
        count = max(_MIN_REQUESTS, round(rate_per_s * (duration_s or self._trial_s)))
        arrivals = poisson_arrivals(count, rate_per_s, *self._lengths, seed)
        max_late = count - math.ceil(SHARE * count)
        return latencies_ms(self._setup(way), arrivals, goal_ms=goal_ms, max_late=max_late)

    def _setup(self, way: EncoderWay) -> Setup:
        s = Settings()
        return Setup(
            Strategy(way.batching, way.objective, s.overtaking_tokens),
            Patience("hungry", way.window, 0, 1),
            self._tables[way.pads],
            Limits(way.max_rows, s.max_batch_tokens, s.max_prefill_tokens),
            way.max_backlog_batches,
            self._worker.run_padded if way.pads else self._worker.run_packed,
            way.held_from,
        )


def chosen_ways(names: list[str]) -> list[EncoderWay]:
    """The ways of these names, in the order of ``encoder_ways``; of none: all.

    Raises:
        ConfigurationError: there is none of that name.
    """
    ways = encoder_ways()
    if unknown := set(names) - set(ways):
        raise ConfigurationError(f"no way {', '.join(sorted(unknown))}: there are {', '.join(ways)}")
    return [way for way in ways.values() if way.name in names or not names]
