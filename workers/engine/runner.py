"""Computes plans on a device, and sees to it that a row that cannot be computed ends alone."""

import logging
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from headrace.errors import DeviceLostError
from headrace.memory.pages import PageCopy
from headrace.workers.engine.launches import Launches
from headrace.workers.engine.logprobs import Logprobs
from headrace.workers.engine.places import Places
from headrace.workers.engine.plan import Chunk, Plan
from headrace.workers.engine.sequence import Sequence

logger = logging.getLogger(__name__)


class Draw(NamedTuple):
    """What a step brought a row.

    Attributes:
        sequence: the row.
        token_id: the token drawn; meaningless where there is an error.
        error: why the row cannot go on; else "".
        logprobs: the token's, where the row asks for them.
    """

    sequence: Sequence
    token_id: int
    error: str = ""
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step brought.

    Attributes:
        draws: a row each, for the rows that sampled or failed.
        step_ms: what it took the device.
    """

    draws: tuple[Draw, ...]
    step_ms: float


class StartedStep(Protocol):
    """A step at work."""

    def finish(self) -> Drawn:
        """Wait for its tokens. Steps are finished in the order in which they were started, each once.

        Raises:
            DeviceLostError: no row can be computed any more.
        """


class Steps(Protocol):
    """A device with a model and its memory; what it is asked for, it does in that order.

    Attributes:
        num_ahead: steps that may be started before an earlier one is finished.
        launches: how steps were launched so far; none on a CPU.
    """

    @property
    def num_ahead(self) -> int: ...  # noqa: D102

    @property
    def launches(self) -> Launches: ...  # noqa: D102

    def reads_tokens(self, sequence: Sequence) -> bool:
        """Whether a row's next token cannot be drawn before the host knows all of those before it."""

    def places(self) -> Places | None:
        """Which rows have places; None where nothing is computed but what is planned."""

    def copy(self, copies: Rows[PageCopy]) -> None:
        """Copy pages; no page is a target twice, or both source and target."""

    def start(self, chunks: Rows[Chunk]) -> StartedStep:
        """Compute chunks together, and draw the next token of each row that is complete.

        Computing a chunk again brings the same: keys and values are written where they were written before, and random
        numbers do not remember the first attempt.

        Args:
            chunks: a row at most once, those that decode first.
        """


class Runner:
    """Runs plans.

    Args:
        steps: where.

    Attributes:
        steps: as given.
    """

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    @torch.inference_mode()
    def start(self, plan: Plan) -> StartedStep | None:
        """Start a plan.

        Returns:
            None if that raised: finish what was started before, then compute the plan's rows ``alone``.

        Raises:
            DeviceLostError: no row can be computed any more.
        """
        if plan.copies:
            self.steps.copy(plan.copies)
        try:
            return self.steps.start(plan.chunks)
        except DeviceLostError:
            raise
        except Exception:
            logger.exception("a step of %d rows failed, trying them alone", len(plan.chunks))
            return None

    @torch.inference_mode()
    def alone(self, plan: Plan) -> tuple[Plan, Drawn]:
        """Compute the chunks of a plan one by one, so that only a row that raises alone ends.

        Returns:
            What of the plan was computed, and what that and the failures brought.

        Raises:
            DeviceLostError: no row can be computed any more.
        """
        computed: list[Chunk] = []
        draws: list[Draw] = []
        step_ms = 0.0
        for chunk in plan.chunks:
            if chunk.sequence.has_ended:
                continue
            try:
                drawn = self.steps.start((chunk,)).finish()
            except DeviceLostError:
                raise
            except Exception as error:
                logger.exception("row %d failed", chunk.sequence.row)
                draws.append(Draw(chunk.sequence, 0, f"{type(error).__name__}: {error}"))
                continue
            computed.append(chunk)
            draws += drawn.draws
            step_ms += drawn.step_ms
        return Plan(tuple(computed)), Drawn(tuple(draws), step_ms)
