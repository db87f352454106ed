"""A CPU that keeps its tokens to itself for a while, as a GPU does: what runs ahead of the host is tested with it."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from headrace.memory.pages import PageCopy
from headrace.workers.engine.host_steps import HostSteps
from headrace.workers.engine.launches import Launches
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.runner import Drawn, StartedStep
from headrace.workers.engine.sequence import Sequence


class OutOfOrderError(AssertionError):
    """Raised where steps are not finished as they were started, or too many are started."""


@dataclass(frozen=True, slots=True)
class _Late:
    step: StartedStep
    steps: "StepsAhead"

    def finish(self) -> Drawn:
        """Give the tokens, in its turn."""
        if not self.steps.unfinished or self.steps.unfinished[0] is not self:
            raise OutOfOrderError("a step is finished before an earlier one, or twice")
        del self.steps.unfinished[0]
        return self.step.finish()


class StepsAhead:
    """Steps of a CPU, whose tokens are known one step later.

    They are computed when they are started, in that order, as on a GPU's stream. The rows' tokens are in the state of
    the rows alone until the step is finished; of the host's rows it only reads what is known by then.

    Args:
        steps: compute.

    Attributes:
        unfinished: steps at work, the oldest first.
        num_ahead: 1.
        launches: none.
        most_unfinished: most steps that were at work at a time.
    """

    num_ahead = 1
    launches = Launches()

    def __init__(self, steps: HostSteps) -> None:
        self._steps = steps
        self.unfinished: list[_Late] = []
        self.most_unfinished = 0

    def reads_tokens(self, sequence: Sequence) -> bool:
        """Whether a row's rules follow from its tokens."""
        return self._steps.reads_tokens(sequence)

    def places(self) -> None:
        """None: only what is planned is computed."""
        return

    def copy(self, copies: Rows[PageCopy]) -> None:
        """Copy pages."""
        self._steps.copy(copies)

    def start(self, chunks: Rows[Chunk]) -> _Late:
        """Compute chunks."""
        if len(self.unfinished) > self.num_ahead:
            raise OutOfOrderError(f"{len(self.unfinished)} steps are at work")
        late = _Late(self._steps.start(chunks), self)
        self.unfinished.append(late)
        self.most_unfinished = max(self.most_unfinished, len(self.unfinished))
        return late
