"""A window of requests for text becomes admissions: parsed, checked, tokenised in one call, priced."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from headrace.config import Settings
from headrace.encoder_request import REQUESTS
from headrace.entries import Entry
from headrace.errors import InvalidRequestError
from headrace.keys import RequestStream
from headrace.moves import Admission
from headrace.request import Request
from headrace.workers.scheduler.bad_words import spell_bad_words
from headrace.workers.scheduler.drafts import Draft, DraftReader
from headrace.workers.scheduler.pricing import Pricer, Prompt
from headrace.workers.text.tokenizer import Tokenizer


class Admits(Protocol):
    """Judges entries for one model; an admitter for each kind of model."""

    def judge(self, stream: RequestStream, entries: Sequence[Entry], now_ms: int = 0) -> list[Admission]:
        """Make one admission of every entry, in order; texts of the whole window are tokenised in one call.

        Args:
            stream: where the entries are from.
            entries: the oldest first.
            now_ms: by the server's clock. A request whose deadline is over costs nobody the work of tokenising it.
        """
        ...


@dataclass(slots=True)
class _Work:
    """What is found out about a request that is neither wrong so far nor late."""

    draft: Draft[Request]
    request: Request
    prompt: Prompt = field(default_factory=lambda: Prompt((), None))
    bad_words: tuple[tuple[int, ...], ...] = ()


class Admitter:
    """Judges entries for one model that writes."""

    def __init__(self, tokenizer: Tokenizer, revision: str, settings: Settings) -> None:
        self._tokenizer = tokenizer
        self._pricer = Pricer(tokenizer, revision, settings)
        self._reader = DraftReader(settings, partial(_parse, settings.queue_name))

    def judge(self, stream: RequestStream, entries: Sequence[Entry], now_ms: int = 0) -> list[Admission]:
        """See ``Admits``."""
        drafts = self._reader.read(stream, entries, now_ms)
        works = {draft.entry: _Work(draft, request) for draft in drafts if (request := draft.wanted) is not None}
        self._tokenise(works.values())
        choosy = [work for work in works.values() if work.request.bad_words]
        spelt = spell_bad_words([work.request.bad_words for work in choosy], self._tokenizer)
        for work, sequences in zip(choosy, spelt, strict=True):
            work.bad_words = sequences

        def complete(blank: Admission, request: Request) -> Admission:
            work = works[blank.entry]
            return self._pricer.price(blank, request, work.prompt, work.bad_words)

        return [self._reader.admission(draft, complete) for draft in drafts]

    def _tokenise(self, works: Iterable[_Work]) -> None:
        texts: dict[bool, list[tuple[_Work, str]]] = {True: [], False: []}
        for work in works:
            request = work.request
            try:
                if request.messages is not None:
                    rendered = self._tokenizer.render_chat([message.model_dump() for message in request.messages])
                    texts[False].append((work, rendered))
                elif isinstance(request.prompt, str):
                    texts[True].append((work, request.prompt))
                elif request.prompt is not None:
                    work.prompt = Prompt(tuple(request.prompt), None)
            except InvalidRequestError as error:
                work.draft.error = error
        for add_special_tokens, batch in texts.items():
            if batch:
                encoded = self._tokenizer.encode_batch(
                    [text for _, text in batch], add_special_tokens=add_special_tokens
                )
                for (work, text), ids in zip(batch, encoded, strict=True):
                    work.prompt = Prompt(ids, text)


def _parse(queue: str, fields: dict[str, Any]) -> Request:
    task = fields.get("task", "generate")
    if isinstance(task, str) and task in REQUESTS and task != "generate":
        raise InvalidRequestError(
            f"task: the model of queue {queue} writes text and cannot {task}: ask the queue of an encoder",
            field="task",
        )
    return Request.parse(fields)
