"""The engine: plan, run, settle, one step after the other."""

from headrace.errors import InvalidRequestError
from headrace.kernels.table import Operations
from headrace.memory.kv_cache import KVCache
from headrace.memory.pages import Pages
from headrace.workers.channel import Add, Drop, Tokens
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.loading import LoadedModel
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.runner import Runner
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.settings import DEFAULT_PAGE_SIZE
from headrace.workers.engine.settle import settle


class Engine:
    """Rows of one courier, computed together. It knows no socket and no clock.

    Args:
        loaded: the model.
        operations: the table that the model was loaded for.
        max_rows: rows in flight at once.
        kv_tokens: tokens that the key-value memory holds, rounded up to whole pages.
        page_size: tokens of a page.
        step_tokens: tokens computed in one step at most, >= ``max_rows``.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        operations: Operations,
        *,
        max_rows: int,
        kv_tokens: int,
        step_tokens: int,
        page_size: int = DEFAULT_PAGE_SIZE,
    ) -> None:
        config = loaded.model.config
        self._pages = Pages(-(-kv_tokens // page_size), page_size)
        kv_cache = KVCache(
            num_layers=config.num_layers,
            num_pages=self._pages.num_pages,
            page_size=page_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=loaded.model.dtype,
        )
        self._eos_ids = loaded.eos_ids
        self._vocab_size = config.vocab_size
        self._max_tokens = min(kv_tokens, config.max_positions)
        self._fusion = Fusion(self._pages, max_rows=max_rows, step_tokens=step_tokens)
        rows = RowState(max_rows, self._pages.pages_for(self._max_tokens))
        self._runner = Runner(loaded.model, kv_cache, operations, rows)

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
        plan = self._fusion.plan()
        draws = self._runner.run(plan)
        return settle(plan, draws, self._fusion)
