"""A window of stream entries becomes admissions: parsed, checked, tokenised in one call, priced.

Whoever may write to a stream may write anything; what is wrong becomes a refusal that names the field and the limit.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from headrace.config import Settings
from headrace.entries import Entry
from headrace.errors import DecodeError, InvalidRequestError
from headrace.keys import REQUEST_ID_PATTERN, RESULT_ID_PATTERN, RequestStream
from headrace.moves import Admission
from headrace.request import NAMES_ARE, Name, Request
from headrace.wire import Encoding, Failure, decode_body
from headrace.workers.scheduler.bad_words import spell_bad_words
from headrace.workers.scheduler.pricing import Pricer, Prompt
from headrace.workers.text.tokenizer import Tokenizer

_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)
_RESULT_ID = re.compile(RESULT_ID_PATTERN)
_REPLY_NAME: TypeAdapter[str] = TypeAdapter(Name)
_ENTRY_FIELDS = {b"id", b"json", b"mp", b"cancel"}


@dataclass(slots=True)
class _Draft:
    """An entry on its way to an admission.

    Attributes:
        late: its deadline is over.
        error: the first thing found wrong.
    """

    entry: str
    request_id: str
    encoding: Encoding = "json"
    cancel: bool = False
    reply_to: str = ""
    request: Request | None = None
    late: bool = False
    error: InvalidRequestError | None = None
    prompt_text: str | None = None
    prompt_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()


class Admitter:
    """Judges entries for one model."""

    def __init__(self, tokenizer: Tokenizer, revision: str, settings: Settings) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._pricer = Pricer(tokenizer, revision, settings)

    def judge(self, stream: RequestStream, entries: Sequence[Entry], now_ms: int = 0) -> list[Admission]:
        """Make one admission of every entry, in order; texts of the whole window are tokenised in one call.

        Args:
            stream: where the entries are from.
            entries: the oldest first.
            now_ms: by the server's clock. A request whose deadline is over costs nobody the work of tokenising it.
        """
        drafts = [self._draft(stream, entry) for entry in entries]
        for draft in drafts:
            draft.late = draft.request is not None and _is_over(draft.entry, draft.request.deadline_ms, now_ms)
        self._tokenise(drafts)
        choosy = [draft for draft in drafts if draft.request is not None and draft.request.bad_words and not draft.late]
        words = [draft.request.bad_words for draft in choosy if draft.request is not None]
        for draft, sequences in zip(choosy, spell_bad_words(words, self._tokenizer), strict=True):
            draft.bad_words = sequences
        return [self._finish(draft) for draft in drafts]

    def _draft(self, stream: RequestStream, entry: Entry) -> _Draft:
        draft = _Draft(entry.id, stream.id_of(entry.id))
        try:
            self._parse(draft, stream.owner_prefix, entry)
        except InvalidRequestError as error:
            draft.error = error
        except DecodeError as error:
            draft.error = InvalidRequestError(f"body: {error}", field="body")
        return draft

    def _parse(self, draft: _Draft, own_prefix: str, entry: Entry) -> None:
        kinds = [name for name in (b"json", b"mp", b"cancel") if name in entry.fields]
        if b"mp" in kinds and b"json" not in kinds:
            draft.encoding = "mp"
        if (named := entry.fields.get(b"id")) is not None:
            draft.request_id = _own_id(named.decode(errors="replace"), own_prefix)
        unknown = entry.fields.keys() - _ENTRY_FIELDS
        if len(kinds) != 1 or unknown:
            found = ", ".join(sorted(name.decode(errors="replace")[:64] for name in entry.fields)[:8])
            raise InvalidRequestError(
                f"entry: needs exactly one of json, mp and cancel, and beside it at most id; has {found}", field="entry"
            )
        body = entry.fields[kinds[0]]
        if kinds[0] == b"cancel":
            draft.request_id = _own_id(body.decode(errors="replace"), own_prefix, _RESULT_ID)
            draft.cancel = True
            return
        if len(body) > self._settings.max_body_bytes:
            raise InvalidRequestError(
                f"body: {len(body)} bytes, more than {self._settings.max_body_bytes}", field="body"
            )
        fields = decode_body(body, draft.encoding)
        self._address(draft, own_prefix, named is not None, fields)
        draft.request = Request.parse(fields)

    def _address(self, draft: _Draft, own_prefix: str, entry_has_id: bool, fields: dict[str, Any]) -> None:
        """Find out first where an answer goes, so that a refusal arrives too."""
        if (given := fields.get("id")) is not None:
            if not isinstance(given, str):
                raise InvalidRequestError("id: must be a string", field="id")
            request_id = _own_id(given, own_prefix)
            if entry_has_id and request_id != draft.request_id:
                raise InvalidRequestError("id: the entry and its body name different ids", field="id")
            draft.request_id = request_id
        if (reply_to := fields.get("reply_to")) is not None:
            try:
                name = _REPLY_NAME.validate_python(reply_to, strict=True)
            except ValidationError as error:
                raise InvalidRequestError(f"reply_to: {NAMES_ARE}", field="reply_to") from error
            if not name.startswith(own_prefix):
                raise InvalidRequestError(f"reply_to: must begin with {own_prefix}", field="reply_to")
            draft.reply_to = name

    def _tokenise(self, drafts: Sequence[_Draft]) -> None:
        texts: dict[bool, list[tuple[_Draft, str]]] = {True: [], False: []}
        for draft in drafts:
            request = draft.request
            if request is None or draft.late:
                continue
            try:
                if request.messages is not None:
                    rendered = self._tokenizer.render_chat([message.model_dump() for message in request.messages])
                    texts[False].append((draft, rendered))
                elif isinstance(request.prompt, str):
                    texts[True].append((draft, request.prompt))
                elif request.prompt is not None:
                    draft.prompt_ids = tuple(request.prompt)
            except InvalidRequestError as error:
                draft.error = error
        for add_special_tokens, batch in texts.items():
            if batch:
                encoded = self._tokenizer.encode_batch(
                    [text for _, text in batch], add_special_tokens=add_special_tokens
                )
                for (draft, text), ids in zip(batch, encoded, strict=True):
                    draft.prompt_text, draft.prompt_ids = text, ids

    def _finish(self, draft: _Draft) -> Admission:
        blank = Admission(
            entry=draft.entry, request_id=draft.request_id, cancel=draft.cancel, encoding=draft.encoding, refusal=b"",
            job=b"", cost_tokens=0, prompt_tokens=0, deadline_ms=0, reply_to=draft.reply_to,
            ttl_ms=self._settings.result_ttl_ms,
        )  # fmt: skip
        if draft.error is None and draft.cancel:
            return blank
        try:
            if draft.error is not None or draft.request is None:
                raise draft.error or InvalidRequestError("body: missing", field="body")
            if draft.late:
                return replace(blank, deadline_ms=draft.request.deadline_ms or 0)
            return self._pricer.price(
                blank, draft.request, Prompt(draft.prompt_ids, draft.prompt_text), draft.bad_words
            )
        except InvalidRequestError as error:
            failure = Failure("invalid", str(error), error.field)
            return replace(blank, cancel=False, refusal=failure.encode(draft.encoding))


def _is_over(entry: str, deadline_ms: int | None, now_ms: int) -> bool:
    """Whether a deadline, counted from the entry's own time, has passed."""
    return deadline_ms is not None and int(entry.partition("-")[0]) + deadline_ms <= now_ms


def _own_id(request_id: str, own_prefix: str, pattern: re.Pattern[str] = _REQUEST_ID) -> str:
    if not pattern.fullmatch(request_id):
        raise InvalidRequestError(f"id: {NAMES_ARE}", field="id")
    if not request_id.startswith(own_prefix):
        raise InvalidRequestError(f"id: must begin with {own_prefix}", field="id")
    return request_id
