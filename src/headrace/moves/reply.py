"""What a script answers: a list of byte strings."""

from headrace.errors import DecodeError


def read_bytes(reply: object) -> list[bytes]:
    """The items of a reply.

    Raises:
        DecodeError: it is no list.
    """
    if not isinstance(reply, list):
        raise DecodeError(f"a move answered {reply!r}")
    return reply


def read_texts(reply: object) -> list[str]:
    """The items of a reply as text; raises as ``read_bytes`` does."""
    return [item.decode() for item in read_bytes(reply)]
