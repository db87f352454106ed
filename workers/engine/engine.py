"""The engine: plan, start, finish, settle; a step is started before the tokens of the one before it are known."""

from array import array
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from headrace.errors import InvalidRequestError
from headrace.memory.pages import Pages
from headrace.workers.channel import Add, Drop, Tokens
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.launches import Launches
from headrace.workers.engine.loading import LoadedModel
from headrace.workers.engine.plan import Plan
from headrace.workers.engine.room import Room
from headrace.workers.engine.runner import Drawn, Runner, StartedStep
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.settle import settle
from headrace.workers.engine.step_budget import StepBudget
from headrace.workers.engine.step_work import StepWork


@dataclass(frozen=True, slots=True)
class _InFlight:
    started: StartedStep
    work: StepWork


class Engine:
    """Rows of one courier, computed together. It knows no socket, no clock and no device; see ``assembly``.

    Args:
        loaded: the model.
        runner: computes with it.
        pages: of the key-value memory.
        max_rows: rows in flight at once.
        step_tokens: tokens computed in one step at most, >= ``max_rows``.
        kv_tokens: tokens that the key-value memory holds, whatever else shares its memory.
        row_tokens: tokens of a row at most, prompt and output.
        room: makes room for what steps write; None where they have memory of their own.
        stall_ms: what a step may take in which rows decode; 0: as long as ``step_tokens`` take.
        prompt_step_ms: what a step may take in which none does; 0: likewise.
        overtaking_rows: rows that may begin before one that came earlier, because they ask for more; see ``Waiting``.

    Attributes:
        kv_tokens: as given.
        room: as given.
        work: what the step computed whose tokens ``step`` gave last.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        runner: Runner,
        pages: Pages,
        *,
        max_rows: int,
        step_tokens: int,
        kv_tokens: int,
        row_tokens: int,
        room: Room | None = None,
        stall_ms: float = 0.0,
        prompt_step_ms: float = 0.0,
        overtaking_rows: int = 0,
    ) -> None:
        self.room = room
        self.kv_tokens = kv_tokens
        self._pages = pages
        self._eos_ids = loaded.eos_ids
        self._vocab_size = loaded.model.config.vocab_size
        self._max_tokens = row_tokens
        self._budget = StepBudget(step_tokens, stall_ms, prompt_step_ms)
        self._fusion = Fusion(
            pages,
            max_rows=max_rows,
            step_tokens=step_tokens,
            overtaking_rows=overtaking_rows,
            budget=self._budget.tokens,
            places=runner.steps.places,
        )
        self._runner = runner
        self._in_flight: deque[_InFlight] = deque()
        self._failed: Plan | None = None  # could not be started; what is in flight comes first
        self.work = StepWork()

    @property
    def has_rows(self) -> bool:
        """Whether a step would do anything: there are rows, or steps at work."""
        return self._fusion.has_rows or bool(self._in_flight)

    @property
    def num_used_pages(self) -> int:
        """Pages of the key-value memory that rows use now."""
        return self._pages.num_used

    @property
    def num_prefilled_tokens(self) -> int:
        """Tokens computed so far in chunks of prompts, those computed again after a preemption among them."""
        return self._fusion.num_prefilled_tokens

    @property
    def launches(self) -> Launches:
        """How steps were launched so far."""
        return self._runner.steps.launches

    @property
    def num_preemptions(self) -> int:
        """How often so far a row gave its pages back for an older one."""
        return self._fusion.num_preemptions

    def add(self, add: Add) -> None:
        """Take a row in; it runs from the next step on, or as soon as there is room.

        Raises:
            InvalidRequestError: the row could never be computed; the engine has not taken it.
        """
        num_tokens = len(add.prompt_ids) + add.params.max_tokens
        if not add.prompt_ids:
            raise InvalidRequestError("the prompt has no tokens", field="prompt")
        if self._fusion.knows(add.row):
            raise InvalidRequestError(f"row {add.row} is in flight already")
        if num_tokens > self._max_tokens:
            raise InvalidRequestError(
                f"prompt and max_tokens are {num_tokens} tokens, more than {self._max_tokens}", field="max_tokens"
            )
        if len(add.output_ids) >= add.params.max_tokens:
            raise InvalidRequestError(f"{len(add.output_ids)} tokens are generated already", field="max_tokens")
        if not (_are_below(self._vocab_size, add.prompt_ids) and _are_below(self._vocab_size, add.output_ids)):
            raise InvalidRequestError(f"a token id is not within 0..{self._vocab_size - 1}", field="prompt")
        sequence = Sequence(add.row, add.prompt_ids, add.output_ids, add.params, self._eos_ids)
        sequence.reads_tokens = self._runner.steps.reads_tokens(sequence)
        self._fusion.add(sequence)

    def learn(self, num_tokens: int, step_ms: float) -> None:
        """Hear what a step of one prompt took the device that was computed before there were rows."""
        self._budget.observe(StepWork(num_tokens, num_tokens, ((0, num_tokens),)), step_ms)

    def drop(self, drop: Drop) -> None:
        """Forget rows; unknown and ended ones are no error."""
        self._fusion.remove(drop.rows)

    def clear(self) -> None:
        """Forget all rows, once the steps at work are done."""
        self._fusion.clear()
        self._failed = None
        while self._in_flight:
            self._in_flight.popleft().started.finish()

    def step(self) -> Tokens:
        """Finish the oldest step at work, after starting as many behind it as the device takes.

        Returns:
            The tokens drawn; none where the step only computed parts of prompts, or for rows that have ended.

        Raises:
            DeviceLostError: no row can be computed any more.
        """
        while self._failed is None and len(self._in_flight) <= self._runner.steps.num_ahead:
            plan = self._fusion.plan() if self.room is None else self.room.plan(self._fusion)
            if not plan.chunks:
                break
            self._start(plan)
        drawn = self._finish()
        tokens, work = settle(drawn.draws, self._fusion), self.work
        return replace(tokens, step_ms=drawn.step_ms, num_tokens=work.num_tokens, prompts=work.prompts)

    def _start(self, plan: Plan) -> None:
        started = self._runner.start(plan)
        if started is None:
            self._failed = plan
            return
        self._in_flight.append(_InFlight(started, StepWork.of(plan)))
        self._fusion.advance(plan)

    def _finish(self) -> Drawn:
        if self._in_flight:
            oldest = self._in_flight.popleft()
            self.work = oldest.work
            drawn = oldest.started.finish()
            self._budget.observe(oldest.work, drawn.step_ms)
            return drawn
        self.work = StepWork()
        if self._failed is None:
            return Drawn((), 0.0)
        # Not planned anew: a row that raises must end, and only the plan that raised says which one may have.
        failed, self._failed = self._failed, None
        computed, drawn = self._runner.alone(failed)
        self.work = StepWork.of(computed)
        self._fusion.advance(computed)
        return drawn


def _are_below(bound: int, token_ids: tuple[int, ...]) -> bool:
    """Whether all are within 0..bound - 1; of a thousand, Python's ``min`` and ``max`` take three times as long."""
    try:
        return not token_ids or int(np.frombuffer(array("I", token_ids), np.uintc).max()) < bound
    except OverflowError:  # below 0, or more than 32 bits hold
        return False
