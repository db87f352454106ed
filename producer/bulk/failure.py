"""An error of a request as JSON: what a job tells of it in its result and in its meta. Pure."""

from headrace.errors import (
    CancelledError,
    ExpiredError,
    FailedError,
    HeadraceError,
    InvalidRequestError,
    OverloadedError,
    UnknownRequestError,
)

_CODES: tuple[tuple[type[HeadraceError], str], ...] = (
    (InvalidRequestError, "invalid"),
    (OverloadedError, "overloaded"),
    (ExpiredError, "expired"),
    (CancelledError, "cancelled"),
    (UnknownRequestError, "unknown"),
)


def failure_fields(error: HeadraceError) -> dict[str, str]:
    """Code, message and field, as in a result's last chunk; other codes are ``expired``, ``cancelled``, ``unknown``."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "failed")
    if isinstance(error, FailedError) and error.code:
        code = error.code
    return {"code": code, "message": str(error), "field": getattr(error, "field", "")}
