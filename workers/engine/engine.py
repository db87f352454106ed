"""The engine: plan, run, settle, one step after the other."""

from headrace.errors import InvalidRequestError
from headrace.memory.pages import Pages
from headrace.workers.channel import Add, Drop, Tokens
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.loading import LoadedModel
from headrace.workers.engine.room import Room
from headrace.workers.engine.runner import Runner
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.settle import settle
from headrace.workers.engine.step_work import StepWork


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

    Attributes:
        kv_tokens: as given.
        room: as given.
        work: what the last step computed.
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
    ) -> None:
        self.room = room
        self.kv_tokens = kv_tokens
        self._pages = pages
        self._eos_ids = loaded.eos_ids
        self._vocab_size = loaded.model.config.vocab_size
        self._max_tokens = row_tokens
        self._fusion = Fusion(pages, max_rows=max_rows, step_tokens=step_tokens)
        self._runner = runner
        self.work = StepWork()

    @property
    def has_rows(self) -> bool:
        """Whether a step would do anything."""
        return self._fusion.has_rows

    @property
    def num_used_pages(self) -> int:
        """Pages of the key-value memory that rows use now."""
        return self._pages.num_used

    @property
    def num_prefilled_tokens(self) -> int:
        """Tokens computed so far in chunks of prompts, those computed again after a preemption among them."""
        return self._fusion.num_prefilled_tokens

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
        token_ids = (*add.prompt_ids, *add.output_ids)
        if not 0 <= min(token_ids) <= max(token_ids) < self._vocab_size:
            raise InvalidRequestError(f"a token id is not within 0..{self._vocab_size - 1}", field="prompt")
        self._fusion.add(Sequence(add.row, add.prompt_ids, add.output_ids, add.params, self._eos_ids))

    def drop(self, drop: Drop) -> None:
        """Forget rows; unknown and ended ones are no error."""
        self._fusion.remove(drop.rows)

    def clear(self) -> None:
        """Forget all rows."""
        self._fusion.clear()

    def step(self) -> Tokens:
        """Compute one step.

        Returns:
            The tokens drawn; none where the step only computed parts of prompts.
        """
        plan = self._fusion.plan() if self.room is None else self.room.plan(self._fusion)
        self.work = StepWork.of(plan)
        draws = self._runner.run(plan)
        return settle(plan, draws, self._fusion)
