"""From logits to tokens on a GPU, by kernels of ours: nothing is sorted, and the host waits once, for the results.

Rows draw by the parameters in ``RowState``; their rules lie in ``DeviceRules``. What is
drawn goes to where the next step reads it, on the device: ``start`` waits for nothing, and another step may be started
before ``finish``.
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
from headrace.workers.engine.sampled import Sampled
from headrace.workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class _Group:
    """What a batch's rows have in common from step to step.

    Attributes:
        rows: the batch.
        places: theirs.
        greedy: all take their most probable token.
        searching: some keep a share of the mass, of however many tokens.
        edited: the logits of some are changed by their own requests.
        penalised: some have penalties.
        asking: indices of rows that ask for logarithms, and for how many tokens beside the chosen one.
    """

    rows: tuple[Sequence, ...]
    places: tuple[int, ...]
    greedy: bool
    searching: bool
    edited: bool
    penalised: bool
    asking: tuple[tuple[int, int], ...]


class DeviceSampler:
    """Samples on a GPU; all its memory is taken at once, for as many rows as the state has places.

    Args:
        state: of the rows, on the GPU.
        vocab_size: of the logits.
        max_tokens: of a row, prompt and output.
        memory: gives memory for good: uint8, so many bytes, aligned to 16; ``num_bytes`` in all. Default: torch does.
    """

    def __init__(
        self, state: RowState, vocab_size: int, max_tokens: int, memory: Callable[[int], Tensor] | None = None
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
        self._results = DeviceResults(max_rows, device)
        self._group: _Group | None = None

    @staticmethod
    def num_bytes(max_rows: int, vocab_size: int) -> int:
        """Tell how much memory a sampler is given."""
        return 4 * workspace_floats(max_rows, vocab_size) + counts_bytes(max_rows, vocab_size)

    def sample(self, logits: Tensor, rows: Rows[Sequence]) -> Sampled:
        """Choose one token a row; see ``TokenSampler``. Logits are fp32, fp16 or bf16."""
        self.start(logits, rows)
        return self.finish()

    def start(self, logits: Tensor, rows: Rows[Sequence]) -> None:
        """Queue the work of ``sample``, up to the copy of its results."""
        group, places = self._group_of(rows), self._state.places_of(rows)
        rules, results, num_rows = self._rules, self._results, len(rows)
        rules.bring_up_to_date(group.rows, group.places)
        logprobs = results.logprobs(num_rows) if group.asking else None
        if logprobs is not None:
            rank(logits, places, rules.num_top, logprobs, self._workspace)
        if group.edited:
            edit_logits(logits, places, rules.edits)
        token_ids, valid = results.tokens(num_rows)
        sample(
            logits,
            self._parameters,
            places=places,
            penalties=rules.penalties if group.penalised else None,
            out=Draws(token_ids, valid, self._state.last_token),
            workspace=self._workspace,
            all_greedy=group.greedy,
            searches=group.searching,
        )
        rules.note_draws(group.places)
        if logprobs is not None:
            tell(logits, places, rules.num_top, token_ids, rules.edits, logprobs)
        results.send(num_rows, group.asking)

    def finish(self) -> Sampled:
        """Wait for the results of what was started, and take them.

        Raises:
            KernelError: nothing was started.
        """
        return self._results.take()

    def _group_of(self, rows: Rows[Sequence]) -> _Group:
        """The batch's group: the last step's, unless rows have come or gone."""
        group, batch, places = self._group, tuple(rows), tuple(self._state.index_of(rows))
        if group is None or group.rows != batch or group.places != places:
            params = [row.params for row in batch]
            group = self._group = _Group(
                batch,
                places,
                all(p.temperature == 0 for p in params),
                any(p.temperature > 0 and p.top_k == 0 and (p.top_p < 1 or p.min_p > 0) for p in params),
                any(p.logit_bias or Forbidden.needed_by(row) for p, row in zip(params, batch, strict=True)),
                any(Penalties.needed_by(row) for row in batch),
                tuple(
                    (index, min(p.logprobs, self._vocab_size))
                    for index, p in enumerate(params)
                    if p.logprobs is not None
                ),
            )
        return group
