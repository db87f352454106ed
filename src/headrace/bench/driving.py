"""Runs requests through an engine at its public call, and says how long it took."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.bench.workload import Requests, falling
from headrace.errors import MeasurementError
from headrace.workers.channel import Add
from headrace.workers.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Driven:
    """What a run took.

    Attributes:
        seconds: from the first arrival to the last token on the host.
        num_tokens: drawn.
    """

    seconds: float
    num_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens drawn a second."""
        return self.num_tokens / self.seconds


def drive(engine: Engine, adds: Sequence[Add], *, alike: bool = False) -> Driven:
    """Add requests at once and run them to their ends.

    Args:
        engine: without rows.
        adds: the requests.
        alike: prompts may begin as others did.

    Raises:
        MeasurementError: a request failed, has not got the tokens that it asked for, or had a prompt that was not
            computed.
    """
    prefilled = engine.num_prefilled_tokens
    begin_s = time.perf_counter()
    for add in adds:
        engine.add(add)
    num_tokens = 0
    while engine.has_rows:
        num_tokens += len(_step(engine))
    seconds = time.perf_counter() - begin_s
    wanted = sum(add.params.max_tokens for add in adds)
    if num_tokens != wanted:
        raise MeasurementError(f"{num_tokens} tokens were drawn, not {wanted}")
    if not alike:
        _require_computed(adds, engine.num_prefilled_tokens - prefilled)
    return Driven(seconds, num_tokens)


def _require_computed(adds: Sequence[Add], num_prefilled: int) -> None:
    wanted = sum(len(add.prompt_ids) for add in adds)
    if num_prefilled < wanted:
        raise MeasurementError(f"{num_prefilled} of {wanted} prompt tokens were computed: others were found again")


def _step(engine: Engine) -> tuple[tuple[int, int, str], ...]:
    step = engine.step()
    if step.error:
        raise MeasurementError(f"a request failed: {step.error}")
    return step.tokens


@dataclass(slots=True)
class Served:
    """One request that arrived at its own time, in seconds after the first could have come.

    Attributes:
        due_s: when it arrived.
        first_s: its first token's arrival on the host.
        last_s: its last token's.
        num_tokens: drawn.
    """

    due_s: float
    first_s: float = 0.0
    last_s: float = 0.0
    num_tokens: int = 0

    @property
    def ttft_ms(self) -> float:
        """From arrival to first token."""
        return (self.first_s - self.due_s) * 1000

    @property
    def tpot_ms(self) -> float:
        """Time a token behind the first; 0 where there is none."""
        return (self.last_s - self.first_s) * 1000 / max(1, self.num_tokens - 1)


def serve(engine: Engine, adds: Sequence[Add], due_s: Sequence[float]) -> list[Served]:
    """Add each request when it is due, and run all to their ends.

    Args:
        engine: without rows.
        adds: in the order of arrival.
        due_s: when each arrives, after the beginning.

    Raises:
        MeasurementError: a request failed, or had a prompt that was not computed.
    """
    prefilled = engine.num_prefilled_tokens
    served = {add.row: Served(due) for add, due in zip(adds, due_s, strict=True)}
    coming = list(zip(adds, due_s, strict=True))[::-1]
    begin_s = time.perf_counter()
    while coming or engine.has_rows:
        while coming and coming[-1][1] <= time.perf_counter() - begin_s:
            engine.add(coming.pop()[0])
        if not engine.has_rows:
            time.sleep(max(0.0, coming[-1][1] - (time.perf_counter() - begin_s)))
            continue
        tokens = _step(engine)
        now_s = time.perf_counter() - begin_s
        for row, _, _ in tokens:
            one = served[row]
            one.first_s = one.first_s or now_s
            one.last_s = now_s
            one.num_tokens += 1
    _require_computed(adds, engine.num_prefilled_tokens - prefilled)
    return list(served.values())


def warm_up(engine: Engine, requests: Requests, max_rows: int) -> None:
    """Have every number of rows decode once, and prompts of every kind come, so that no round meets anything new."""
    drive(engine, requests.adds(list(falling(max_rows)), temperature=0.6))
