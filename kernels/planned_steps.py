"""Steps whose results lie where a plan says, for a table that asks where each result goes as it computes.

The first step of a kind (with logits, without) is traced. From then on results are laid out by their lifetimes for
the lengths at hand (``memory.planner``), and nothing is allocated in a step whose lengths have been seen before.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from torch import Tensor

from headrace.errors import KernelError
from headrace.kernels.step_trace import Between, Result, StepTrace
from headrace.kernels.table import Batch, Table

B = TypeVar("B", bound=Batch)

#: Gives a step's tensors memory: called with the lengths and, if these are new, what is to be laid out.
Place = Callable[[tuple[int, int], Callable[[], Sequence[Result]]], Sequence[Tensor]]


class PlannedSteps(Generic[B]):
    """The steps of a table over another one, and the memory that their results are given.

    Args:
        operations: computes.
        place: gives results memory; until it is known, they have memory of their own.
    """

    def __init__(self, operations: Table[B], place: Place | None = None) -> None:
        self._operations = operations
        self._place = place
        self._traces: dict[bool, StepTrace] = {}
        self._trace: StepTrace | None = None
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
                    self._trace = StepTrace()
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
