"""What GGUF calls the kinds of tokens."""

from enum import IntEnum


class TokenType(IntEnum):
    """GGUF's numbers of the kinds."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6
