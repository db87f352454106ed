"""What requests change in their own logits, and what they want to know of them, in a GPU's memory: a place each.

The same rules as ``row_rules``. A place is written when a row enters it; later only what a row's own tokens change:
which words may not be completed, whether an end may come yet. Counts for penalties are kept by the kernels that draw.
"""

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from weakref import ref

import torch

from headrace.kernels.logit_edits import WORD_BITS, Edits, num_words
from headrace.kernels.penalties import Penalties as DevicePenalties
from headrace.kernels.penalties import count_tokens
from headrace.request import MAX_LIST
from headrace.workers.engine.forbidden import Forbidden
from headrace.workers.engine.penalties import Penalties
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.state_memory import StateMemory


@dataclass(slots=True)
class _Known:
    """What a place says.

    Attributes:
        row: whose it is.
        forbidden: what is forbidden to the row, if anything ever is.
        bits: words of forbidden tokens that are not 0.
        token_ids: what these say.
        num_counted: tokens that the row's counts hold.
    """

    row: Callable[[], Sequence | None]
    forbidden: Forbidden | None
    bits: dict[int, int]
    token_ids: list[int] = field(default_factory=list)
    num_counted: int = 0


def _nobody() -> None:
    return None


def counts_bytes(max_rows: int, vocab_size: int) -> int:
    """Tell how much memory penalties' counts take."""
    return 2 * max_rows * (vocab_size + vocab_size % 2)


class DeviceRules:
    """Rules of the rows in flight.

    Args:
        max_rows: places.
        vocab_size: of the logits.
        max_tokens: of a row, prompt and output.
        device: the GPU.
        memory: gives the large part of its memory, that of penalties' counts: uint8, so many bytes, aligned to 16.

    Attributes:
        edits: biases and forbidden tokens.
        penalties: and the counts that they rest on.
        num_top: int32 ``[max_rows]``, tokens to tell the logarithms of beside the chosen one's; -1: tell nothing.
    """

    def __init__(
        self,
        max_rows: int,
        vocab_size: int,
        max_tokens: int,
        device: torch.device,
        memory: Callable[[int], torch.Tensor],
    ) -> None:
        def of_place(dtype: torch.dtype, *shape: int) -> tuple[torch.dtype, tuple[int, ...]]:
            return dtype, (max_rows, *shape)

        self._num_words = num_words(vocab_size)
        self._vocab_size = vocab_size
        self._known: list[_Known | None] = [None] * max_rows
        state = self._memory = StateMemory(
            {
                "num_top": of_place(torch.int32),
                "bias_ids": of_place(torch.int32, MAX_LIST),
                "biases": of_place(torch.float32, MAX_LIST),
                "num_biases": of_place(torch.int32),
                "forbidden": of_place(torch.int32, self._num_words),
                "num_forbidden": of_place(torch.int32),
                "repetition": of_place(torch.float32),
                "presence": of_place(torch.float32),
                "frequency": of_place(torch.float32),
                "slots": of_place(torch.int32),
            },
            device,
        )
        self.num_top = state["num_top"]
        unbiased = torch.zeros(max_rows, MAX_LIST, dtype=torch.float32, device=device)
        self.edits = Edits(
            state["bias_ids"],
            state["biases"],
            state["num_biases"],
            state["forbidden"],
            state["num_forbidden"],
            unbiased,
        )
        counts = memory(counts_bytes(max_rows, vocab_size)).view(torch.int16).view(max_rows, -1).zero_()
        self.penalties = DevicePenalties(
            state["repetition"], state["presence"], state["frequency"], counts, state["slots"]
        )
        self._token_ids = torch.zeros(max_tokens, dtype=torch.int64, device=device)

    def bring_up_to_date(self, rows: Rows[Sequence], places: Rows[int]) -> None:
        """Write what the kernels must know of the rows of a step, before they run."""
        for row, place in zip(rows, places, strict=True):
            known = self._known[place]
            if known is None or known.row() is not row:
                known = self._enter(row, place, {} if known is None else known.bits)
            if known.forbidden is not None and (token_ids := known.forbidden.behind(row)) != known.token_ids:
                self._forbid(place, known, token_ids)
            # The kernels that draw count on, and may be ahead of what the host has seen.
            if Penalties.needed_by(row) and known.num_counted < len(row.token_ids):
                self._count(row, place)
                known.num_counted = len(row.token_ids)
        self._memory.send()

    def note_draws(self, places: Rows[int]) -> None:
        """Note that the kernels count one token more in each of these places."""
        for place in places:
            known = self._known[place]
            if known is not None:
                known.num_counted += 1

    def forget(self) -> None:
        """Write every row anew that is met from here on."""
        for known in self._known:
            if known is not None:
                known.row = _nobody

    def _enter(self, row: Sequence, place: int, bits: dict[int, int]) -> _Known:
        params, write = row.params, self._memory.write
        known = _Known(ref(row), Forbidden(row, self._vocab_size) if Forbidden.needed_by(row) else None, bits)
        self._known[place] = known
        self._forbid(place, known, [])
        write("num_top", place, [-1 if params.logprobs is None else params.logprobs])
        write("num_biases", place, [len(params.logit_bias)])
        write("bias_ids", place * MAX_LIST, [token_id for token_id, _ in params.logit_bias])
        write("biases", place * MAX_LIST, [bias for _, bias in params.logit_bias])
        write("repetition", place, [params.repetition_penalty])
        write("presence", place, [params.presence_penalty])
        write("frequency", place, [params.frequency_penalty])
        write("slots", place, [place if Penalties.needed_by(row) else -1])
        return known

    def _forbid(self, place: int, known: _Known, token_ids: list[int]) -> None:
        known.token_ids = token_ids
        bits: dict[int, int] = {}
        for token_id in token_ids:
            bits[token_id // WORD_BITS] = bits.get(token_id // WORD_BITS, 0) | 1 << token_id % WORD_BITS
        if bits == known.bits:
            return
        first = place * self._num_words
        for word in known.bits.keys() | bits.keys():
            value = bits.get(word, 0)
            if known.bits.get(word, 0) != value:
                self._memory.write("forbidden", first + word, [value - (value >> 31 << 32)])  # its sign is a bit
        self._memory.write("num_forbidden", place, [len(bits)])
        known.bits = bits

    def _count(self, row: Sequence, place: int) -> None:
        here = torch.tensor(row.token_ids, pin_memory=self._token_ids.is_cuda)  # or the host waits for steps at work
        there = self._token_ids[: len(here)]
        there.copy_(here, non_blocking=True)
        count_tokens(self.penalties.counts[place], there, row.num_prompt_tokens)
