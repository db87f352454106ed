"""A refusal of one request of a divided call, as the caller reads it: his texts counted as he gave them. Pure."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.errors import InvalidRequestError

#: The fields that a call divides among its requests.
DIVIDED_FIELDS = ("input", "text_pair", "documents")

#: The text that a refusal begins with; a token's place within that text, which may follow, stays as it is.
_CULPRIT = re.compile(r"^\w+\[(\d+)\]")
_ANY_TEXT = re.compile(r"\[(\d+)\]")


@contextmanager
def counted_from(first_text: int) -> Iterator[None]:
    """Count texts that a refusal names from the beginning of the call, of which they are a part.

    Args:
        first_text: place of the request's first text among the call's.

    Raises:
        InvalidRequestError: the same refusal.
    """
    try:
        yield
    except InvalidRequestError as error:
        if not first_text or error.field not in DIVIDED_FIELDS:
            raise
        message = _moved(str(error), first_text)
        raise InvalidRequestError(message, field=error.field, request_id=error.request_id) from error


def _moved(message: str, by: int) -> str:
    def moved(found: re.Match[str]) -> str:
        return found[0].replace(f"[{found[1]}]", f"[{int(found[1]) + by}]")

    return (_CULPRIT if _CULPRIT.match(message) else _ANY_TEXT).sub(moved, message)
