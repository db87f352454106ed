"""When the waiting requests are cut and handed over: the setting ``trigger`` and its times. Pure; clocks are arguments.

=========  ===========================================================================================
hungry     as soon as the workers' backlog is short: nobody waits while a worker could compute
lazy       when the window is full, when the oldest request has waited ``lazy_timeout_ms``, or when a deadline asks
half_goal  when the oldest request's wait and the predicted cost of its batch reach half of ``latency_goal_ms``, when
           the window is full, or when a deadline asks; after TurboTransformers (arXiv:2010.05680, section 5)
=========  ===========================================================================================

A lazy scheduler lets requests gather and gets better batches for it; under load all three are the same, because the
backlog is what everybody waits for. A wait takes only what a deadline leaves: beside the time to compute, for which
twice the predicted cost is counted, ``hand_over_ms`` for the way to a worker. What is in a hurry already does not wait.
"""

from dataclasses import dataclass
from typing import Self

from headrace.config import Settings, Trigger


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits to be handed over.

    Attributes:
        num_requests: ready, at least one.
        oldest_ms: when the one that waits longest came.
        predicted_ms: cost of the batch that would go first.
        latest_start_ms: the last moment at which workers must begin so that no deadline is in danger, in the past where
            one is already; None where there is no deadline.
    """

    num_requests: int
    oldest_ms: float
    predicted_ms: float
    latest_start_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """One trigger with its times.

    Attributes:
        trigger: which.
        window: requests that are a full window.
        lazy_timeout_ms: of ``lazy``.
        latency_goal_ms: of ``half_goal``.
        hand_over_ms: before the latest start.
    """

    trigger: Trigger
    window: int
    lazy_timeout_ms: int
    latency_goal_ms: int
    hand_over_ms: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings say."""
        s = settings
        return cls(s.trigger, s.window, s.lazy_timeout_ms, s.latency_goal_ms, s.hand_over_ms)

    def wait_ms(self, waiting: Waiting, now_ms: float) -> float:
        """How much longer to let requests gather; 0 to hand over now. What comes meanwhile may shorten it."""
        if self.trigger == "hungry" or waiting.num_requests >= self.window:
            return 0.0
        if self.trigger == "lazy":
            moment_ms = waiting.oldest_ms + self.lazy_timeout_ms
        else:
            moment_ms = waiting.oldest_ms + self.latency_goal_ms / 2 - waiting.predicted_ms
        if waiting.latest_start_ms is not None:
            moment_ms = min(moment_ms, waiting.latest_start_ms - self.hand_over_ms)
        return max(0.0, moment_ms - now_ms)
