"""Computes a plan on a device, and sees to it that a row that cannot be computed ends alone."""

import logging
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

import torch

from headrace.errors import DeviceLostError
from headrace.memory.pages import PageCopy
from headrace.workers.engine.fusion import Chunk, Plan
from headrace.workers.engine.logprobs import Logprobs
from headrace.workers.engine.sequence import Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Draw:
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


class Steps(Protocol):
    """A device with a model and its memory."""

    def copy(self, copies: Rows[PageCopy]) -> None:
        """Copy pages; no page is a target twice, or both source and target."""

    def compute(self, chunks: Rows[Chunk]) -> tuple[Draw, ...]:
        """Compute chunks together, and draw the next token of each row that is complete.

        Computing a chunk again brings the same: keys and values are written where they were written before, and random
        numbers do not remember the first attempt.

        Returns:
            A row each, for the rows that sampled.
        """


class Runner:
    """Runs plans.

    Args:
        steps: where.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    @torch.inference_mode()
    def run(self, plan: Plan) -> tuple[Draw, ...]:
        """Compute a plan's tokens and draw the next one of each row that is complete.

        If the batch raises, its chunks are computed one by one, so that only a row that raises alone ends.

        Returns:
            A row each, for the rows that sampled and the rows that failed.

        Raises:
            DeviceLostError: no row can be computed any more.
        """
        if plan.copies:
            self._steps.copy(plan.copies)
        try:
            return self._steps.compute(plan.chunks)
        except DeviceLostError:
            raise
        except Exception:
            logger.exception("a step of %d rows failed, trying them alone", len(plan.chunks))
        draws: list[Draw] = []
        for chunk in plan.chunks:
            try:
                draws += self._steps.compute((chunk,))
            except DeviceLostError:
                raise
            except Exception as error:
                logger.exception("row %d failed", chunk.sequence.row)
                draws.append(Draw(chunk.sequence, 0, f"{type(error).__name__}: {error}"))
        return tuple(draws)
