"""A window of stream entries becomes admissions: parsed, checked, tokenised in one call, priced.

Whoever may write to a stream may write anything; what is wrong becomes a refusal that names the field and the limit.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from headrace.broker import Entry
from headrace.config import Settings
from headrace.errors import DecodeError, InvalidRequestError
from headrace.job import Job, SamplingParams
from headrace.keys import REQUEST_ID_PATTERN, RequestStream
from headrace.moves import Admission
from headrace.request import Name, Request
from headrace.wire import Encoding, Failure, decode_body
from headrace.workers.text.tokenizer import Tokenizer

_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)
_REPLY_NAME: TypeAdapter[str] = TypeAdapter(Name)
_ENTRY_FIELDS = {b"id", b"json", b"mp", b"cancel"}


@dataclass(slots=True)
class _Draft:
    """An entry on its way to an admission; ``error`` is the first thing found wrong."""

    entry: str
    request_id: str
    encoding: Encoding = "json"
    cancel: bool = False
    reply_to: str = ""
    request: Request | None = None
    error: InvalidRequestError | None = None
    prompt_ids: tuple[int, ...] = ()


class Admitter:
    """Judges entries for one model."""

    def __init__(self, tokenizer: Tokenizer, revision: str, settings: Settings) -> None:
        self._tokenizer = tokenizer
        self._revision = revision
        self._settings = settings
        self._context = min(tokenizer.context_length, settings.max_context_tokens)

    def judge(self, stream: RequestStream, entries: Sequence[Entry]) -> list[Admission]:
        """Make one admission of every entry, in order; texts of the whole window are tokenised in one call."""
        drafts = [self._draft(stream, entry) for entry in entries]
        self._tokenise(drafts)
        return [self._finish(draft) for draft in drafts]

    def _draft(self, stream: RequestStream, entry: Entry) -> _Draft:
        own_prefix = f"{stream.tenant}:" if stream.tenant else ""
        draft = _Draft(entry.id, own_prefix + entry.id)
        try:
            self._parse(draft, own_prefix, entry)
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
            draft.request_id = _own_id(body.decode(errors="replace"), own_prefix)
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
                raise InvalidRequestError(f"reply_to: {error.errors()[0]['msg']}", field="reply_to") from error
            if not name.startswith(own_prefix):
                raise InvalidRequestError(f"reply_to: must begin with {own_prefix}", field="reply_to")
            draft.reply_to = name

    def _tokenise(self, drafts: Sequence[_Draft]) -> None:
        texts: dict[bool, list[tuple[_Draft, str]]] = {True: [], False: []}
        for draft in drafts:
            request = draft.request
            if request is None:
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
                for (draft, _), ids in zip(batch, encoded, strict=True):
                    draft.prompt_ids = ids

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
            return self._price(blank, draft.request, draft.prompt_ids)
        except InvalidRequestError as error:
            failure = Failure("invalid", str(error), error.field)
            return replace(blank, cancel=False, refusal=failure.encode(draft.encoding))

    def _price(self, blank: Admission, request: Request, prompt_ids: tuple[int, ...]) -> Admission:
        max_tokens = self._check(request, prompt_ids)
        params = SamplingParams(
            max_tokens=max_tokens,
            min_tokens=request.min_tokens,
            temperature=float(request.temperature),
            top_k=request.top_k,
            top_p=float(request.top_p),
            min_p=float(request.min_p),
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            stop=request.stop_strings,
            stop_token_ids=tuple(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
        )
        return replace(
            blank,
            job=Job(prompt_ids, params, self._revision).encode(),
            cost_tokens=len(prompt_ids) + max_tokens,
            prompt_tokens=len(prompt_ids),
            deadline_ms=request.deadline_ms or 0,
            ttl_ms=request.ttl_ms or self._settings.result_ttl_ms,
        )

    def _check(self, request: Request, prompt_ids: tuple[int, ...]) -> int:
        """Check what only the model can tell; return the number of tokens that may be generated."""
        source = "prompt" if request.messages is None else "messages"
        if not prompt_ids:
            raise InvalidRequestError(f"{source}: holds no token", field=source)
        if len(prompt_ids) >= self._context:
            raise InvalidRequestError(
                f"{source}: {len(prompt_ids)} tokens, the context holds {self._context} with the output", field=source
            )
        for name, ids in (("prompt", prompt_ids), ("stop_token_ids", request.stop_token_ids)):
            if max(ids, default=0) >= self._tokenizer.vocab_size:
                raise InvalidRequestError(f"{name}: token ids must be under {self._tokenizer.vocab_size}", field=name)
        if request.ttl_ms is not None and request.ttl_ms > self._settings.max_result_ttl_ms:
            raise InvalidRequestError(f"ttl_ms: at most {self._settings.max_result_ttl_ms}", field="ttl_ms")
        room = self._context - len(prompt_ids)
        if request.max_tokens is not None and request.max_tokens > room:
            raise InvalidRequestError(
                f"max_tokens: at most {room}, the context of {self._context} less the prompt's {len(prompt_ids)}",
                field="max_tokens",
            )
        max_tokens = request.max_tokens or min(self._settings.default_max_tokens, room)
        if request.min_tokens > max_tokens:
            raise InvalidRequestError(f"min_tokens: at most max_tokens, {max_tokens}", field="min_tokens")
        return max_tokens


def _own_id(request_id: str, own_prefix: str) -> str:
    if not _REQUEST_ID.match(request_id):
        raise InvalidRequestError("id: 1 to 128 letters, digits and _.@+=:-, the first a letter or digit", field="id")
    if not request_id.startswith(own_prefix):
        raise InvalidRequestError(f"id: must begin with {own_prefix}", field="id")
    return request_id
