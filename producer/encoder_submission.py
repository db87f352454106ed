"""A call of an encoder made ready to be sent: a submission for each of its requests. Pure but for the dice."""

from collections.abc import Mapping
from typing import Any

from headrace.config import Settings
from headrace.errors import InvalidRequestError
from headrace.producer.encoding import EncoderCall
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
    requests = call.requests(texts_per_request)
    name = manner.pop("request_id")
    return [
        prepare(
            settings,
            None,
            None,
            {**request, **fields},
            request_id=name if name is None or len(requests) == 1 else f"{name}.{number}",
            **manner,
        )
        for number, request in enumerate(requests)
    ]
