"""What the two clients take, and its defaults. Pure."""

import re

from headrace.config import Settings
from headrace.errors import ConfigurationError, InvalidRequestError
from headrace.keys import RESULT_ID_PATTERN, RequestStream

#: Seconds for a whole result.
TIMEOUT_S = 600.0
#: Seconds for which a submission or a cancellation waits for a server that is away.
SUBMIT_TIMEOUT_S = 10.0
#: Seconds for which a request that this client did not submit may be unknown: it may wait in its stream to be admitted.
ATTACH_WAIT_S = 5.0


def settings_of(settings: Settings | None, url: str | None, queue: str | None) -> Settings:
    """The settings that a client was given, in one form or the other.

    Raises:
        ConfigurationError: in both, or they are wrong.
    """
    if settings is None:
        return Settings.load(redis_url=url, queue=queue)
    if url is not None or queue is not None:
        raise ConfigurationError("give settings, or url and queue, not both")
    return settings


def stream_of(request_id: str) -> RequestStream:
    """A stream by which the owner of an id may withdraw it: any lane of the tenant whose name the id begins with."""
    tenant, colon, _ = request_id.partition(":")
    return RequestStream("normal", tenant if colon else "")


def checked_id(request_id: object, pattern: str = RESULT_ID_PATTERN) -> str:
    """Return a request's id if it can be one; one that cannot would be waited for in vain.

    Raises:
        InvalidRequestError: it cannot.
    """
    if not isinstance(request_id, str):
        raise InvalidRequestError(f"id: must be a string, {request_id!r} is none", field="id")
    # Not match: a dollar sign would let a newline pass.
    if not re.fullmatch(pattern, request_id):
        raise InvalidRequestError(
            f"id: {request_id!r} cannot be a request's: 1 to 128 letters, digits and _.@+=:-, no mark in front",
            field="id",
        )
    return request_id


def checked_seconds(seconds: float, name: str = "timeout_s") -> float:
    """Return a time to wait if it is one.

    Raises:
        InvalidRequestError: it is negative or not a number.
    """
    if not seconds >= 0:  # nan is not
        raise InvalidRequestError(f"{name}: {seconds} is no time to wait, it must be at least 0", field=name)
    return seconds
