"""What stands in a stream becomes drafts of admissions: read, addressed, parsed; whatever model the queue is of.

Whoever may write to a stream may write anything; what is wrong becomes a refusal that names the field and the limit.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from headrace.config import Settings
from headrace.entries import Entry
from headrace.errors import DecodeError, InvalidRequestError
from headrace.keys import REQUEST_ID_PATTERN, RESULT_ID_PATTERN, RequestStream
from headrace.moves import Admission
from headrace.request import NAMES_ARE, AnyRequest, Name
from headrace.wire import Encoding, Failure, decode_body

_REQUEST_ID = re.compile(REQUEST_ID_PATTERN)
_RESULT_ID = re.compile(RESULT_ID_PATTERN)
_REPLY_NAME: TypeAdapter[str] = TypeAdapter(Name)
_ENTRY_FIELDS = {b"id", b"json", b"mp", b"cancel"}

RequestT = TypeVar("RequestT", bound=AnyRequest)


@dataclass(slots=True)
class Draft(Generic[RequestT]):
    """An entry on its way to an admission.

    Attributes:
        entry: its id in the stream.
        request_id: of the request, or of the one to cancel.
        encoding: of the request.
        cancel: it withdraws a request.
        reply_to: name of a reply stream, or "".
        request: None of a cancellation, and where something is wrong.
        late: its deadline is over.
        error: the first thing found wrong.
    """

    entry: str
    request_id: str
    encoding: Encoding = "json"
    cancel: bool = False
    reply_to: str = ""
    request: RequestT | None = None
    late: bool = False
    error: InvalidRequestError | None = None

    @property
    def wanted(self) -> RequestT | None:
        """The request, if it is to be looked at: neither wrong so far nor late."""
        return None if self.late or self.error is not None else self.request


class DraftReader(Generic[RequestT]):
    """Reads entries for one model.

    Args:
        settings: limits.
        parse: makes a request of a decoded body, or raises InvalidRequestError.
    """

    def __init__(self, settings: Settings, parse: Callable[[dict[str, Any]], RequestT]) -> None:
        self._settings = settings
        self._parse_body = parse

    def read(self, stream: RequestStream, entries: Sequence[Entry], now_ms: int) -> list[Draft[RequestT]]:
        """Make one draft of every entry, in order.

        Args:
            stream: where the entries are from.
            entries: the oldest first.
            now_ms: by the server's clock.
        """
        drafts = [self._draft(stream, entry) for entry in entries]
        for draft in drafts:
            draft.late = draft.request is not None and _is_over(draft.entry, draft.request.deadline_ms, now_ms)
        return drafts

    def admission(self, draft: Draft[RequestT], complete: Callable[[Admission, RequestT], Admission]) -> Admission:
        """The admission of a draft, a refusal included.

        Args:
            draft: as ``read`` has made it.
            complete: adds job, price and options to what is known of the entry, or raises InvalidRequestError.
        """
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
            request = draft.request
            timed = replace(
                blank,
                deadline_ms=request.deadline_ms or 0,
                ttl_ms=request.ttl_ms or self._settings.result_ttl_ms,
            )
            if draft.late:
                return timed
            if timed.ttl_ms > self._settings.max_result_ttl_ms and request.ttl_ms is not None:
                raise InvalidRequestError(f"ttl_ms: at most {self._settings.max_result_ttl_ms}", field="ttl_ms")
            return complete(timed, request)
        except InvalidRequestError as error:
            failure = Failure("invalid", str(error), error.field)
            return replace(blank, cancel=False, refusal=failure.encode(draft.encoding))

    def _draft(self, stream: RequestStream, entry: Entry) -> Draft[RequestT]:
        draft: Draft[RequestT] = Draft(entry.id, stream.id_of(entry.id))
        try:
            self._parse(draft, stream.owner_prefix, entry)
        except InvalidRequestError as error:
            draft.error = error
        except DecodeError as error:
            draft.error = InvalidRequestError(f"body: {error}", field="body")
        return draft

    def _parse(self, draft: Draft[RequestT], own_prefix: str, entry: Entry) -> None:
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
        draft.request = self._parse_body(fields)

    def _address(self, draft: Draft[RequestT], own_prefix: str, entry_has_id: bool, fields: dict[str, Any]) -> None:
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


def _is_over(entry: str, deadline_ms: int | None, now_ms: int) -> bool:
    """Whether a deadline, counted from the entry's own time, has passed."""
    return deadline_ms is not None and int(entry.partition("-")[0]) + deadline_ms <= now_ms


def _own_id(request_id: str, own_prefix: str, pattern: re.Pattern[str] = _REQUEST_ID) -> str:
    if not pattern.fullmatch(request_id):
        raise InvalidRequestError(f"id: {NAMES_ARE}", field="id")
    if not request_id.startswith(own_prefix):
        raise InvalidRequestError(f"id: must begin with {own_prefix}", field="id")
    return request_id
