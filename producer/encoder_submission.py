"""A call of an encoder made ready to be sent: a submission for each of its requests. Pure but for the dice."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from headrace.config import Settings
from headrace.errors import InvalidRequestError
from headrace.producer.encoding import EncoderCall
from headrace.producer.refusal import counted_from
from headrace.producer.submission import Submission, Via, prepare

#: How a request is sent, unless a call says otherwise.
_MANNERS: Mapping[str, Any] = {
    "lane": "normal",
    "tenant": "",
    "request_id": None,
    "encoding": "mp",
    "durability": "memory",
}


def prepare_encoder(
    settings: Settings,
    call: EncoderCall,
    texts_per_request: int,
    options: Mapping[str, Any],
    via: Via,
) -> list[Submission]:
    """Make the requests of a call of an encoder ready.

    Args:
        settings: limits.
        call: the texts.
        texts_per_request: of one request.
        options: further fields, and the manner of sending as in ``prepare``.
        via: unless ``options`` say otherwise.

    Raises:
        InvalidRequestError: as ``prepare``.
    """
    manner = {name: options.get(name, default) for name, default in _MANNERS.items()}
    manner["via"] = options.get("via") or via
    fields = {name: value for name, value in options.items() if name not in _MANNERS and name != "via"}
    if unknown := fields.keys() & {"task", *call.shared, *(call.divided or ())}:
        raise InvalidRequestError(f"{min(unknown)}: given twice", field=min(unknown))
    name = manner.pop("request_id")

    def one(number: int | None, request: Mapping[str, Any]) -> Submission:
        its_name = name if name is None or number is None else f"{name}.{number}"
        return prepare(settings, None, None, {**request, **fields}, request_id=its_name, **manner)

    return submissions_of(call, texts_per_request, one)


def submissions_of(
    call: EncoderCall, texts_per_request: int, make: Callable[[int | None, Mapping[str, Any]], Submission]
) -> list[Submission]:
    """Make a submission for each request of a call.

    Args:
        call: the texts.
        texts_per_request: of one request.
        make: of a request's number, None where it is the only one, and its fields.

    Raises:
        InvalidRequestError: what ``make`` raises; texts are counted as the call has them.
    """
    requests = call.requests(texts_per_request)
    submissions = []
    for number, request in enumerate(requests):
        first_text = number * texts_per_request
        with counted_from(first_text):
            submission = make(number if len(requests) > 1 else None, request)
        submissions.append(replace(submission, first_text=first_text))
    return submissions
