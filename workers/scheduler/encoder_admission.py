"""A window of requests to an encoder becomes admissions: parsed, checked, tokenised in one call, priced."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from headrace.cache_key import cache_key
from headrace.config import Settings
from headrace.encoder_job import EncoderJob, EncoderParams, pack_ids
from headrace.encoder_request import (
    ClassifyRequest,
    EmbedRequest,
    EncoderRequest,
    FillRequest,
    RerankRequest,
    parse_request,
)
from headrace.entries import Entry
from headrace.errors import InvalidRequestError
from headrace.keys import RequestStream
from headrace.moves import Admission
from headrace.workers.scheduler.drafts import DraftReader
from headrace.workers.text.encoder_facts import EncoderFacts
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer, TokenisedText

#: A text, a pair of them, or the very tokens.
Raw = str | tuple[str, str] | list[int]


@dataclass(slots=True)
class _Work:
    """The texts of a request that is neither wrong so far nor late."""

    request: EncoderRequest
    names: list[str]
    raw: list[Raw]
    texts: list[TokenisedText] = field(default_factory=list)


class EncoderAdmitter:
    """Judges entries for one encoder."""

    def __init__(self, tokenizer: EncoderTokenizer, revision: str, settings: Settings) -> None:
        self._tokenizer = tokenizer
        self._facts = tokenizer.facts
        self._revision = revision
        self._settings = settings
        self._max_length = min(tokenizer.facts.max_length, settings.max_request_tokens)
        self._reader = DraftReader(settings, partial(_parse, settings.queue_name, tokenizer.facts))

    def judge(self, stream: RequestStream, entries: Sequence[Entry], now_ms: int = 0) -> list[Admission]:
        """See ``headrace.workers.scheduler.admission.Admits``."""
        drafts = self._reader.read(stream, entries, now_ms)
        works: dict[str, _Work] = {}
        for draft in drafts:
            if (request := draft.wanted) is None:
                continue
            try:
                works[draft.entry] = self._work(request)
            except InvalidRequestError as error:
                draft.error = error
        self._tokenise(works.values())

        def complete(blank: Admission, _: EncoderRequest) -> Admission:
            return self._price(blank, works[blank.entry])

        return [self._reader.admission(draft, complete) for draft in drafts]

    def _work(self, request: EncoderRequest) -> _Work:
        """A request's texts and what to call each of them in a refusal."""
        match request:
            case RerankRequest():
                documents = [f"documents[{index}]" for index in range(len(request.documents))]
                if self._facts.judges_pairs:
                    work = _Work(request, documents, [(request.query, document) for document in request.documents])
                else:
                    work = _Work(request, ["query", *documents], [request.query, *request.documents])
            case EmbedRequest() | ClassifyRequest() | FillRequest():
                texts, is_one = _texts(request.input)
                names = ["input"] if is_one else [f"input[{index}]" for index in range(len(texts))]
                pairs = request.text_pair if isinstance(request, ClassifyRequest) else None
                if pairs is not None:
                    second = [pairs] if isinstance(pairs, str) else pairs
                    # The schema has seen that these are texts, and as many.
                    texts = [(str(first), other) for first, other in zip(texts, second, strict=True)]
                work = _Work(request, names, texts)
            case _:
                raise AssertionError(f"no texts of {request.task}")
        if len(work.raw) > self._settings.max_request_texts:
            raise InvalidRequestError(
                f"{_base(work.names[-1])}: {len(work.raw)} texts, a request takes {self._settings.max_request_texts} "
                "(max_request_texts): send several requests",
                field=_base(work.names[-1]),
            )
        return work

    def _tokenise(self, works: Iterable[_Work]) -> None:
        """Count all texts in one call, and cut those that are too long, where that is wanted, in another."""
        works = list(works)
        spelt = [text for work in works for text in work.raw if not isinstance(text, list)]
        encoded = iter(self._tokenizer.encode_batch(spelt))
        long: list[tuple[_Work, int]] = []
        for work in works:
            for index, text in enumerate(work.raw):
                found = TokenisedText(text, len(text)) if isinstance(text, list) else next(encoded)
                work.texts.append(found)
                if len(found.ids) > self._max_length and work.request.truncate:
                    long.append((work, index))
        cut = [(work, index, text) for work, index in long if not isinstance(text := work.raw[index], list)]
        shorter = self._tokenizer.encode_batch([text for *_, text in cut], truncate=True)
        for (work, index, _), found in zip(cut, shorter, strict=True):
            work.texts[index] = found
        for work, index in long:
            if len(ids := work.texts[index].ids) > self._max_length:
                # Of tokens given as they are, the last one may be the mark of an end.
                work.texts[index] = TokenisedText([*ids[: self._max_length - 1], ids[-1]], self._max_length)

    def _price(self, blank: Admission, work: _Work) -> Admission:
        self._check(work)
        lengths = tuple(len(text.ids) for text in work.texts)
        job = EncoderJob(
            task=work.request.task,
            lengths=lengths,
            firsts=tuple(text.num_first for text in work.texts),
            token_ids=pack_ids([text.ids for text in work.texts]),
            params=self._params(work.request),
            revision=self._revision,
        )
        key = cache_key(job.encode(), blank.encoding) if self._settings.cache_entries and work.request.cache else ""
        num_tokens = sum(lengths)
        return replace(
            blank,
            job=(replace(job, cache_key=key) if key else job).encode(),
            cost_tokens=num_tokens,
            prompt_tokens=num_tokens,
            cache_key=key,
        )

    def _check(self, work: _Work) -> None:
        """Check what only the tokens, or the model, can tell."""
        width, dimensions = self._facts.width, getattr(work.request, "dimensions", None) or 0
        if width and dimensions > width:
            raise InvalidRequestError(f"dimensions: at most {width}, as the model's vectors have", field="dimensions")
        for name, raw, text in zip(work.names, work.raw, work.texts, strict=True):
            if len(text.ids) > self._max_length:
                raise InvalidRequestError(
                    f"{name}: {len(text.ids)} tokens, the model takes {self._max_length}; shorten it, or have it cut "
                    "with truncate",
                    field=_base(name),
                )
            if isinstance(raw, list) and max(raw) >= self._facts.vocab_size:
                raise InvalidRequestError(
                    f"{name}: token ids must be under {self._facts.vocab_size}", field=_base(name)
                )
            if isinstance(work.request, FillRequest) and self._tokenizer.mask_id not in text.ids:
                raise InvalidRequestError(
                    f"{name}: no {self._tokenizer.mask} to be filled"
                    + (" is left once it is cut" if work.request.truncate else ""),
                    field=_base(name),
                )
        num_tokens = sum(len(text.ids) for text in work.texts)
        if num_tokens > self._settings.max_request_tokens:
            name = _base(work.names[-1])
            raise InvalidRequestError(
                f"{name}: {num_tokens} tokens in all, a request takes {self._settings.max_request_tokens} "
                "(max_request_tokens): send several requests",
                field=name,
            )

    def _params(self, request: EncoderRequest) -> EncoderParams:
        match request:
            case EmbedRequest():
                floats = None if request.encoding_format is None else request.encoding_format == "float"
                return EncoderParams(request.pooling, request.normalize, request.dimensions or 0, floats=floats)
            case RerankRequest():
                return EncoderParams(top=request.top_n, pairs=self._facts.judges_pairs)
            case ClassifyRequest() | FillRequest():
                return EncoderParams(top=request.top_k)
            case _:
                raise AssertionError(f"no parameters of {request.task}")


def _parse(queue: str, facts: EncoderFacts, fields: dict[str, Any]) -> EncoderRequest:
    tasks = ", ".join(facts.tasks)
    task = fields.get("task", "generate")
    if task == "generate":
        raise InvalidRequestError(
            f"task: the model of queue {queue} is an encoder ({facts.architecture}) and writes no text: say with task "
            f"what it shall do ({tasks}), or send the request to the queue of a model that writes",
            field="task",
        )
    request = parse_request(fields)
    assert isinstance(request, EncoderRequest)
    if isinstance(request, RerankRequest) and facts.labels and not facts.judges_pairs:
        raise InvalidRequestError(
            f"task: the model of queue {queue} has {len(facts.labels)} labels and ranks nothing: rerank needs a model "
            "with one label, or one without a head",
            field="task",
        )
    if request.task not in facts.tasks:
        raise InvalidRequestError(
            f"task: the model of queue {queue} ({facts.architecture}) cannot {request.task}; it can {tasks}",
            field="task",
        )
    return request


def _texts(given: Any) -> tuple[list[Raw], bool]:
    """The texts of ``input``, and whether it was one."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given], True
    return list(given), False


def _base(name: str) -> str:
    """The field that a text's name begins with."""
    return name.partition("[")[0]
