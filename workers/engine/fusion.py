"""Which tokens the next step computes: temporal fusion of requests, without padding and without waiting.

After Flover [1]: a request joins the running rows at the next step and leaves them in the step that ends it. Unlike
Flover's, a prompt comes in chunks, so that no prompt stalls the running rows longer than one bounded step [2].

Pure Python: no torch, no Redis, no clock.

[1] Yao et al., Flover: A Temporal Fusion Framework for Efficient Autoregressive Model Parallel Inference, 2023.
[2] Agrawal et al., Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve, OSDI 2024.
"""

from collections.abc import Callable, Iterable

from headrace.errors import ConfigurationError
from headrace.memory.pages import Pages
from headrace.workers.engine.beginnings import Beginnings
from headrace.workers.engine.places import Places
from headrace.workers.engine.plan import Chunk, Plan
from headrace.workers.engine.sequence import Sequence
from headrace.workers.engine.waiting import Waiting


class Fusion:
    """The rows of one courier, waiting and running.

    Rows are admitted in the order that ``Waiting`` gives them, and no more of them than the next step can begin (or
    keep waiting for a beginning that it computes for others): those that wait can still be put in order when others
    come. A row for which there is no room holds back those behind it: it would starve if shorter ones could overtake it
    for ever. (The scheduler, not the engine, orders requests.)

    A plan is made while the one before it is still being computed. Of a token that is being drawn it must know only
    that there will be one: a row that ends with it, and that is planned once more, computes a token that nobody wants.
    What makes this safe is one rule: steps, copies and moves of pages run in the order in which they were planned.

    - Pages that a row gives back may be given to whoever is planned next, though a step at work still writes there:
      that step comes first.
    - What a started step computes may be shared at once, as far as its token ids are known: whoever reads it comes
      later. A plan that could not be started has not happened (``advance`` is not called), so nothing is shared that
      nobody writes.
    - What others may share of a page is never written again: a step at work writes behind it, or, for a row that has
      ended, the very token that the row says is there.

    Pages are taken as rows grow. When there are none left, the row that was admitted last gives its own back, waits at
    the front, and is computed again: the oldest row always goes on, hence every row ends.

    Args:
        pages: of the key-value memory.
        max_rows: rows running at once.
        step_tokens: tokens of a step at most. At least ``max_rows``: every decoding row takes part in every step,
            and a row that still prefills finds at least one token left, for it is not among the decoding ones.
        overtaking_rows: rows that may be admitted before one that came earlier, since they ask for more tokens.
        budget: gives the tokens that the next step should compute at most, by the number of those that are not
            of prompts; None: ``step_tokens``. One token of a prompt is always computed.
        places: tells, on a device where they have them, which places rows have.

    Attributes:
        num_prefilled_tokens: tokens computed so far in chunks of prompts, those computed again among them.
        num_preemptions: how often a row gave its pages back.
    """

    def __init__(
        self,
        pages: Pages,
        *,
        max_rows: int,
        step_tokens: int,
        overtaking_rows: int = 0,
        budget: Callable[[int], int] | None = None,
        places: Callable[[], Places | None] = lambda: None,
    ) -> None:
        if not 1 <= max_rows <= step_tokens:
            raise ConfigurationError(f"max_rows {max_rows} must be at least 1 and at most step_tokens {step_tokens}")
        self._budget = budget or (lambda num_others: step_tokens)
        self._places = places
        self.num_prefilled_tokens = 0
        self.num_preemptions = 0
        self._pages = pages
        self._max_rows = max_rows
        self._step_tokens = step_tokens
        self._waiting = Waiting(overtaking_rows)
        self._running: dict[int, Sequence] = {}  # by row, in the order of admission

    @property
    def has_rows(self) -> bool:
        """Whether any row waits or runs."""
        return len(self._waiting) > 0 or bool(self._running)

    @property
    def awaits_tokens(self) -> bool:
        """Whether a token is being drawn for any row: then a plan may well be empty."""
        return any(sequence.num_pending for rows in (self._running.values(), self._waiting) for sequence in rows)

    @property
    def num_decoding(self) -> int:
        """Rows that are admitted and have one token left to compute, perhaps one that is not drawn yet."""
        return sum(sequence.num_tokens_left == 1 for sequence in self._running.values())

    @property
    def running(self) -> tuple[Sequence, ...]:
        """The rows that are admitted, in that order."""
        return tuple(self._running.values())

    def knows(self, row: int) -> bool:
        """Whether a row waits or runs."""
        return row in self._running or self._waiting.knows(row)

    def add(self, sequence: Sequence) -> None:
        """Queue a row whose ``num_slots`` the memory can hold at all."""
        self._waiting.add(sequence)

    def remove(self, rows: Iterable[int], *, spoilt: bool = False) -> None:
        """Forget rows, running or waiting; their memory is free for the next plan. Unknown ones are no error.

        Args:
            rows: their numbers.
            spoilt: what they have computed is nothing for others.
        """
        gone = set(rows)
        for row in gone & self._running.keys():
            sequence = self._running.pop(row)
            sequence.has_ended = True
            self._give_back(sequence, spoilt=spoilt)
        self._waiting.remove(gone)

    def clear(self) -> None:
        """Forget all rows."""
        self.remove([*self._running, *(sequence.row for sequence in self._waiting)])

    def greatest_lengths(self, *, closely: bool = False) -> tuple[int, int]:
        """Admit whom there is room for, and say how long the next plan may be.

        Args:
            closely: no longer than it needs. Otherwise lengths are rounded up so far that they change seldom: what is
                prepared for one step then serves many.

        Returns:
            Tokens, and rows that sample, both at most.
        """
        self._admit()
        num_rows = len(self._running)
        num_tokens = sum(sequence.num_tokens_left for sequence in self._running.values())
        most_rows = min(self._max_rows, _power_of_two(num_rows))
        if num_tokens == num_rows:
            return most_rows, most_rows
        if closely:
            return min(self._step_tokens, num_tokens), num_rows
        return min(self._step_tokens, _power_of_two(num_tokens)), most_rows

    def preempt(self) -> bool:
        """Let the row that was admitted last give its pages back; False where it is the only one."""
        if len(self._running) < 2:
            return False
        self._preempt_youngest()
        return True

    def plan(self, max_tokens: int | None = None) -> Plan:
        """Admit whom there is room for, then take every decoding row and fill the budget with prompts, oldest first.

        A plan must be started (``advance``), or its rows removed, before the next one is made. Rows that cannot go on
        before a token is known are left out; if all of them are, the plan is empty.

        Args:
            max_tokens: of this step, at least one for each decoding row, after ``greatest_lengths``; None: as ever.
        """
        if max_tokens is None:
            self._admit()
        num_decoding = self._num_going_on()
        places = self._places() if 0 < num_decoding < len(self._running) else None
        num_others = num_decoding if places is None else max(num_decoding, places.end)
        budget = max(1, self._budget(num_others) - num_others)
        budget = max(0, min(budget, min(self._step_tokens, max_tokens or self._step_tokens) - num_decoding))
        decoding: list[Chunk] = []
        prefilling: list[Chunk] = []
        beginnings = Beginnings(self._pages)
        for sequence in tuple(self._running.values()):
            if sequence.row not in self._running:
                continue  # preempted by an older one
            if sequence.num_tokens_left == 1:
                if not sequence.must_wait and self._make_room(sequence, 1):
                    decoding.append(Chunk.next_of(sequence, 1))
                continue
            num_new = 0 if places is None else places.num_new(sequence.row)
            # The first one goes on in any case.
            if budget <= (num_new if prefilling else 0) or beginnings.adopt(sequence):
                continue
            most_tokens = max(1, budget - num_new)
            num_tokens = self._make_room(sequence, min(sequence.num_tokens_left, most_tokens))
            if num_tokens:
                beginnings.enter(sequence)
                chunk = Chunk.next_of(sequence, num_tokens)
                (decoding if chunk.decodes else prefilling).append(chunk)
                if places is not None:
                    places.enter(sequence.row)
                budget -= num_tokens + num_new
        num_idle = 0 if places is None else max(0, places.end - len(decoding))
        return Plan((*decoding, *prefilling), tuple(beginnings.copies), num_idle)

    def advance(self, plan: Plan) -> None:
        """Note that a plan has been started, so that rows to come may share what it computes."""
        size = self._pages.page_size
        for sequence, start, num_tokens, samples, is_prefill in plan.chunks:
            sequence.num_computed_tokens = start + num_tokens
            sequence.num_pending += samples
            self.num_prefilled_tokens += num_tokens * is_prefill
            with_last = samples and is_prefill
            num_known = sequence.num_known_computed_tokens
            if with_last or num_known // size > sequence.pages.num_recorded:
                self._pages.record(sequence.pages, sequence.token_ids, num_known, with_last=with_last)

    def _admit(self) -> None:
        if not len(self._waiting) or len(self._running) >= self._max_rows:
            return
        beginnings = Beginnings(self._pages)
        num_left = sum(beginnings.num_to_prefill(sequence) for sequence in self._running.values())
        most_left = max(1, self._budget(self._num_going_on()))
        if num_left >= most_left:
            return
        # What running rows still lack for their prompts is spoken for.
        num_free = self._pages.num_available - sum(
            self._pages.num_missing(sequence.pages, sequence.token_ids) for sequence in self._running.values()
        )
        while len(self._waiting) and len(self._running) < self._max_rows and num_left < most_left:
            sequence = self._waiting.first()
            if sequence.num_pending:
                return  # it gave way while a token was being drawn
            num_free -= self._pages.num_missing(sequence.pages, sequence.token_ids)
            if num_free < 0 and self._running:
                return
            self._waiting.begin()
            self._running[sequence.row] = sequence
            num_left += beginnings.num_to_prefill(sequence)

    def _num_going_on(self) -> int:
        """Rows that decode in the next step; those that only wait for their last token have none in it."""
        return sum(sequence.num_tokens_left == 1 and not sequence.must_wait for sequence in self._running.values())

    def _make_room(self, sequence: Sequence, num_tokens: int) -> int:
        """Give a row pages for its next tokens, at the cost of younger ones if need be.

        Returns:
            For how many tokens there is room, at most ``num_tokens``; 0 if the row itself had to give way.
        """
        start = sequence.num_computed_tokens
        if start + num_tokens <= len(sequence.pages.page_ids) * self._pages.page_size:
            return num_tokens
        while True:
            room = self._pages.reserve(sequence.pages, start + num_tokens) - start
            if room > 0:
                return room
            if self._preempt_youngest() is sequence:
                return 0

    def _preempt_youngest(self) -> Sequence:
        youngest = next(reversed(self._running.values()))
        del self._running[youngest.row]
        self._give_back(youngest)
        self._waiting.put_first(youngest)
        self.num_preemptions += 1
        return youngest

    def _give_back(self, sequence: Sequence, *, spoilt: bool = False) -> None:
        if spoilt:
            self._pages.forget(sequence.pages)
        else:
            known = sequence.num_known_computed_tokens
            self._pages.record(sequence.pages, sequence.token_ids, known, with_last=True)
        self._pages.end(sequence.pages)
        sequence.num_computed_tokens = 0


def _power_of_two(number: int) -> int:
    """Round up."""
    return 1 << max(0, number - 1).bit_length()
