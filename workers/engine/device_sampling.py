"""From logits to tokens on a GPU, by kernels of ours: nothing is sorted, and the host waits once, for the results.

Rows draw by the parameters in ``RowState``; their rules lie in ``DeviceRules``. What is drawn goes to where the next
step reads it, on the device. Of a step's work, ``draw`` is what a captured graph may hold.
"""

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headrace.kernels.logit_edits import edit_logits
from headrace.kernels.logits import workspace_floats
from headrace.kernels.logprobs import rank, tell
from headrace.kernels.sampling import Draws, SamplingParameters, sample
from headrace.workers.engine.device_results import DeviceResults
from headrace.workers.engine.device_rules import DeviceRules, counts_bytes
from headrace.workers.engine.forbidden import Forbidden
from headrace.workers.engine.penalties import Penalties
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Kind:
    """Which kernels a batch's rows need.

    Attributes:
        greedy: all take their most probable token.
        searching: some keep a share of the mass, of however many tokens.
        penalised: some have penalties.
        edited: the logits of some are changed by their own requests.
        asking: some ask for logarithms.
    """

    greedy: bool
    searching: bool
    penalised: bool
    edited: bool
    asking: bool

    @property
    def is_ruled(self) -> bool:
        """Whether what some rows ask for must be brought up to date before they draw."""
        return self.penalised or self.edited or self.asking


@dataclass(frozen=True, slots=True)
class Group:
    """What a batch's rows have in common from step to step.

    Attributes:
        rows: the batch.
        places: theirs.
        kind: which kernels they need.
        asking: places in ``rows`` of those that ask for logarithms, and for how many tokens beside the chosen one.
    """

    rows: tuple[Sequence, ...]
    places: tuple[int, ...]
    kind: Kind
    asking: tuple[tuple[int, int], ...]


class DeviceSampler:
    """Samples on a GPU; all its memory is taken at once, for as many rows as the state has places.

    Args:
        state: of the rows, on the GPU.
        vocab_size: of the logits.
        max_tokens: of a row, prompt and output.
        memory: gives memory for good: uint8, so many bytes, aligned to 16; ``num_bytes`` in all. Default: torch does.
        num_steps: whose results may be on their way, or not yet be read, at once.

    Attributes:
        results: of the step at hand.
    """

    def __init__(
        self,
        state: RowState,
        vocab_size: int,
        max_tokens: int,
        memory: Callable[[int], Tensor] | None = None,
        num_steps: int = 1,
    ) -> None:
        device, max_rows = state.position.device, len(state.position)
        memory = memory or partial(torch.empty, dtype=torch.uint8, device=device)
        of = state.sampling
        self._state = state
        self._vocab_size = vocab_size
        self._parameters = SamplingParameters(
            of.temperature, of.top_k, of.top_p, of.min_p, of.seed, state.position, of.num_prompt_tokens
        )
        self._workspace = memory(4 * workspace_floats(max_rows, vocab_size)).view(torch.float32)
        self._rules = DeviceRules(max_rows, vocab_size, max_tokens, device, memory)
        self.results = DeviceResults(max_rows, device, num_steps)
        self._group: Group | None = None

    @staticmethod
    def num_bytes(max_rows: int, vocab_size: int) -> int:
        """Tell how much memory a sampler is given."""
        return 4 * workspace_floats(max_rows, vocab_size) + counts_bytes(max_rows, vocab_size)

    def prepare(self, rows: Rows[Sequence], places: Rows[int]) -> Group:
        """Bring the rules of a batch's rows up to date, before it is drawn.

        Args:
            rows: the batch; the rows have entered the state.
            places: theirs.
        """
        group = self._group_of(rows, places)
        if group.kind.is_ruled:
            self._rules.bring_up_to_date(group.rows, group.places)
            if group.kind.penalised:
                self._rules.note_draws(group.places)
        return group

    def draw(self, logits: Tensor, places: Tensor, kind: Kind) -> None:
        """Launch what chooses a token a row, into ``results`` and where the next step reads it; wait for nothing.

        Args:
            logits: ``[num_rows, vocab]``; changed.
            places: int64 ``[num_rows]``; nothing is drawn where it is -1.
            kind: of the rows.
        """
        rules, num_rows = self._rules, len(places)
        logprobs = self.results.logprobs(num_rows) if kind.asking else None
        if logprobs is not None:
            rank(logits, places, rules.num_top, logprobs, self._workspace)
        if kind.edited:
            edit_logits(logits, places, rules.edits)
        token_ids, valid = self.results.tokens(num_rows)
        sample(
            logits,
            self._parameters,
            places=places,
            penalties=rules.penalties if kind.penalised else None,
            out=Draws(token_ids, valid, self._state.last_token),
            workspace=self._workspace,
            all_greedy=kind.greedy,
            searches=kind.searching,
        )
        if logprobs is not None:
            tell(logits, places, rules.num_top, token_ids, rules.edits, logprobs)
        self.results.tell(num_rows)

    def forget(self) -> None:
        """Trust no memory any more: a step was begun and not ended, and nothing is at work."""
        self._group = None
        self._rules.forget()
        self.results.forget()

    def _group_of(self, rows: Rows[Sequence], places: Rows[int]) -> Group:
        """The batch's group: the last step's, unless rows have come or gone."""
        group, batch, theirs = self._group, tuple(rows), tuple(places)
        if group is None or group.rows != batch or group.places != theirs:
            params = [row.params for row in batch]
            asking = tuple(
                (index, min(p.logprobs, self._vocab_size)) for index, p in enumerate(params) if p.logprobs is not None
            )
            kind = Kind(
                greedy=all(p.temperature == 0 for p in params),
                searching=any(p.temperature > 0 and p.top_k == 0 and (p.top_p < 1 or p.min_p > 0) for p in params),
                penalised=any(Penalties.needed_by(row) for row in batch),
                edited=any(p.logit_bias or Forbidden.needed_by(row) for p, row in zip(params, batch, strict=True)),
                asking=bool(asking),
            )
            group = self._group = Group(batch, theirs, kind, asking)
        return group
