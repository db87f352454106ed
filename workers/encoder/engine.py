"""The encoder's engine: rows in, answers out, a step at a time. It knows no Redis and no text.

The texts of the rows that came in one batch are computed together, the shortest first: the batch was cut by what that
costs. A batch of more than a step's tokens takes several steps, between which a row can be dropped.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from headrace.encoder_job import EncoderJob
from headrace.errors import DecodeError, DeviceLostError, HeadraceError, InvalidRequestError, ModelError
from headrace.workers.channel import Encode, Encoded
from headrace.workers.encoder.findings import Findings, items_of
from headrace.workers.encoder.items import EncoderItem, Result
from headrace.workers.engine.step_work import StepWork, shape_of


class Runs(Protocol):
    """What computes items: ``headrace.workers.encoder.runner.EncoderRunner``."""

    def check(self, item: EncoderItem) -> None:
        """Refuse an item that cannot be computed; raises InvalidRequestError."""
        ...

    def compute(self, items: Sequence[EncoderItem]) -> list[Result]:
        """Compute items that have been checked; results come in their order."""
        ...


@dataclass(slots=True, eq=False)
class _Row:
    """A request in flight: results of its texts, None where there is none yet."""

    number: int
    job: EncoderJob
    items: list[EncoderItem]
    results: list[Result | None] = field(default_factory=list)
    num_open: int = 0

    def __post_init__(self) -> None:
        self.num_open = len(self.items)
        self.results = [None] * len(self.items)


@dataclass(frozen=True, slots=True)
class _Text:
    """One text of a row."""

    row: _Row
    index: int

    @property
    def item(self) -> EncoderItem:
        return self.row.items[self.index]

    @property
    def length(self) -> int:
        return self.row.job.lengths[self.index]


class EncoderEngine:
    """Rows in flight on one encoder.

    Args:
        runner: computes.
        findings: of the same model.
        step_tokens: tokens computed in one step at most; a longer text is computed alone.

    Attributes:
        work: what the last step computed.
    """

    def __init__(self, runner: Runs, findings: Findings, *, step_tokens: int) -> None:
        self.work = StepWork()
        self._runner = runner
        self._findings = findings
        self._step_tokens = step_tokens
        self._rows: dict[int, _Row] = {}
        self._batches: deque[deque[_Text]] = deque()
        self._refused: list[tuple[int, bytes, str]] = []

    @property
    def num_batches(self) -> int:
        """Batches of which something is left to compute."""
        return len(self._batches)

    @property
    def has_rows(self) -> bool:
        """Whether a step would do or tell anything."""
        return bool(self._rows or self._refused)

    def add(self, message: Encode) -> None:
        """Take a batch in; a row that cannot be computed is told of in the next step."""
        batch: list[_Text] = []
        for given in message.rows:
            try:
                row = self._row(given.row, given.job)
            except (DecodeError, InvalidRequestError) as error:
                self._refused.append((given.row, b"", str(error)))
                continue
            self._rows[row.number] = row
            batch += [_Text(row, index) for index in range(len(row.items))]
        if batch:
            self._batches.append(deque(sorted(batch, key=lambda text: text.length)))

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget rows; unknown and ended ones are no error."""
        for number in numbers:
            self._rows.pop(number, None)

    def clear(self) -> None:
        """Forget all rows."""
        self._rows.clear()
        self._batches.clear()
        self._refused.clear()

    def step(self) -> Encoded:
        """Compute texts of the oldest batch; tell of the rows that are complete with them.

        Raises:
            DeviceLostError: the GPU has failed.
        """
        answers, self._refused = self._refused, []
        texts = self._next_texts()
        self.work = _work(texts)
        if texts:
            answers += self._compute(texts)
        for number, _, _ in answers:
            self._rows.pop(number, None)
        return Encoded(tuple(answers), num_tokens=self.work.num_tokens, prompts=self.work.prompts)

    def _row(self, number: int, data: bytes) -> _Row:
        job = EncoderJob.decode(data)
        row = _Row(number, job, items_of(job))
        self._findings.check(job)
        for item in row.items:
            self._runner.check(item)
        return row

    def _next_texts(self) -> list[_Text]:
        texts: list[_Text] = []
        num_tokens = 0
        while self._batches and not texts:
            batch = self._batches[0]
            while batch and (not texts or num_tokens + batch[0].length <= self._step_tokens):
                text = batch.popleft()
                if self._rows.get(text.row.number) is text.row:
                    texts.append(text)
                    num_tokens += text.length
            if not batch:
                self._batches.popleft()
        return texts

    def _compute(self, texts: Sequence[_Text]) -> list[tuple[int, bytes, str]]:
        try:
            results = self._runner.compute([text.item for text in texts])
            return self._settle(texts, results)
        except DeviceLostError:
            raise
        except (HeadraceError, MemoryError, RuntimeError) as error:
            return [(number, b"", str(error)) for number in dict.fromkeys(text.row.number for text in texts)]

    def _settle(self, texts: Sequence[_Text], results: Sequence[Result]) -> list[tuple[int, bytes, str]]:
        """Give texts their results; tell of the rows that lack none."""
        complete: list[tuple[int, bytes, str]] = []
        for text, result in zip(texts, results, strict=True):
            row = text.row
            row.results[text.index] = result
            row.num_open -= 1
            if not row.num_open:
                complete.append(self._found(row))
        return complete

    def _found(self, row: _Row) -> tuple[int, bytes, str]:
        try:
            found = self._findings.found(row.job, [each for each in row.results if each is not None])
        except ModelError as error:
            return row.number, b"", str(error)
        return row.number, found, ""


def _work(texts: Sequence[_Text]) -> StepWork:
    prompts: dict[int, int] = {}
    for text in texts:
        prompts[text.row.number] = prompts.get(text.row.number, 0) + text.length
    num_tokens = sum(prompts.values())
    return StepWork(num_tokens, num_tokens, tuple(prompts.items()), shape_of([text.length for text in texts]))
