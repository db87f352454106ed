"""What one way to batch does for a real fleet: a CPU worker with its scheduler, under Poisson arrivals.

Each request's work is its prompt: it ends with its first token. The fleet measures its costs before anything is timed.
"""

import asyncio
import math
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from headrace.config import Settings
from headrace.producer.async_client import AsyncClient
from headrace.testing.arrival_trial import SHARE, ArrivalTrial, Prompts
from headrace.testing.fleet import Fleet, wait_until
from headrace.testing.queue_simulation import poisson_arrivals
from headrace.testing.rate_search import critical_rate, percentile
from headrace.workers.costs.table import GUESSED_FIXED_MS, GUESSED_TOKEN_MS, CostTable

_MEASURE_TIMEOUT_S = 120.0
_DRAIN_TIMEOUT_S = 60.0
#: Of the machine's own rate, by its measured costs: where a search begins, and the load of the warm-up.
_FIRST_GUESS, _WARM_UP_LOAD = 0.85, 0.4
#: Tokens of a full step, by which a machine's own rate is reckoned.
_STEP_TOKENS = 256
#: Of a trial, however short: of fewer a p99 says little.
_MIN_REQUESTS = 20
#: A size of every table, by whose cost a guess is told from a measurement.
_GUESSED_TOKENS = 8


class FleetRates:
    """One fleet, and trials on it; use it in a ``with``, which starts the fleet and warms it up.

    Args:
        settings: of the fleet; ``measure_ms`` says for how long costs are measured where none are on file.
        lengths: of prompts in tokens, uniform between two.
        goal_ms: what 99 of 100 requests must keep to.
        trial_s: for how long requests arrive in one trial, longer where so few would come that a p99 says nothing.
        prompts: from which each trial draws.
        embeds: whether the model is an encoder.
    """

    def __init__(
        self,
        settings: Settings,
        lengths: tuple[int, int],
        goal_ms: float,
        trial_s: float,
        prompts: Prompts,
        *,
        embeds: bool = False,
    ) -> None:
        self._settings = settings
        self._lengths = lengths
        self._goal_ms = goal_ms
        self._trial_s = trial_s
        self._prompts = prompts
        self._embeds = embeds
        self._stack = ExitStack()
        self._fleet = Fleet(settings)
        self._since_ms = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._fleet)
            wait_until(self._has_costs, _MEASURE_TIMEOUT_S, "the costs to be measured")
            self._run(_WARM_UP_LOAD * self.own_rate_per_s, self._trial_s / 4, -1, math.inf)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def table(self) -> CostTable:
        """The costs that the fleet's one worker has published last."""
        (encoded,) = self._fleet.broker.costs.tables().values()
        return CostTable.decode(encoded)

    @property
    def own_rate_per_s(self) -> float:
        """Requests a second that the worker could end in full steps, by its costs."""
        mean_tokens = sum(self._lengths) / 2
        return 1000 * _STEP_TOKENS / mean_tokens / self.table.packed_cost(_STEP_TOKENS)

    @property
    def rows_per_batch(self) -> float:
        """Requests in a batch as it was cut, on average over the last trial."""
        records = self._fleet.broker.costs.batch_log(self._settings.batch_log_entries)
        sizes = [record.num_rows for record in records if int(record.batch.partition("-")[0]) >= self._since_ms]
        return sum(sizes) / len(sizes) if sizes else 0.0

    def latencies_ms(self, rate_per_s: float, seed: int) -> list[float]:
        """Of one trial, whether it keeps to the goal or not; the fleet then rests.

        Raises:
            FleetError: it does not come to rest.
            HeadraceError: a request failed.
        """
        return self._run(rate_per_s, self._trial_s, seed, math.inf)

    def critical_rate(self, seed: int, guess: float | None, *, stride: float, precision: float) -> float:
        """The largest rate, in requests/s, at which p99 keeps to the goal.

        Args:
            seed: of arrivals and lengths, which are the same at every rate but for their pace.
            guess: where to begin; None: by the measured costs.
            stride: as ``rate_search.critical_rate`` has it.
            precision: as there.
        """

        def holds(rate_per_s: float) -> bool:
            taken = self._run(rate_per_s, self._trial_s, seed, self._goal_ms)
            return percentile(taken, SHARE) <= self._goal_ms

        return critical_rate(holds, guess or _FIRST_GUESS * self.own_rate_per_s, stride=stride, precision=precision)

    def _run(self, rate_per_s: float, duration_s: float, seed: int, goal_ms: float) -> list[float]:
        """One trial, which ends early where it cannot keep to the goal any more."""
        count = max(_MIN_REQUESTS, round(rate_per_s * duration_s))
        arrivals = poisson_arrivals(count, rate_per_s, *self._lengths, seed)
        self._since_ms = self._fleet.broker.now_ms()

        async def trial() -> list[float]:
            async with AsyncClient(self._settings) as client:
                return await ArrivalTrial(client, arrivals, self._prompts, goal_ms, self._embeds).run()

        latencies_ms = asyncio.run(trial())
        wait_until(self._is_idle, _DRAIN_TIMEOUT_S, "the fleet to rest")
        return latencies_ms

    def _has_costs(self) -> bool:
        """Whether the worker has published what it measured or kept, and not the guess that it begins with."""
        guessed_ms = GUESSED_FIXED_MS + GUESSED_TOKEN_MS * _GUESSED_TOKENS
        return bool(self._fleet.broker.costs.tables()) and self.table.packed_cost(_GUESSED_TOKENS) != guessed_ms

    def _is_idle(self) -> bool:
        load = self._fleet.broker.load()
        return not load["queued"] and not load["running"]
