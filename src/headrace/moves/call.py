"""What every move has in common: a script with a name, its ARGV, and a reply to be read."""

from functools import cache
from importlib.resources import files
from typing import Protocol, TypeVar

Argument = bytes | str | int | float

ReplyT = TypeVar("ReplyT", covariant=True)


class Call(Protocol[ReplyT]):
    """One call of a move: its script's name, its ARGV, and how to read what comes back."""

    @property
    def move(self) -> str:
        """Name of the Lua file."""
        ...

    def arguments(self) -> list[Argument]:
        """The script's ARGV."""
        ...

    def read(self, reply: object) -> ReplyT:
        """Make a dataclass of the script's reply."""
        ...


@cache
def source(move: str) -> str:
    """The Lua text of a move: its first line, which carries the flags, then the shared prelude, then the rest."""
    folder = files("headrace.lua")
    first, rest = folder.joinpath(f"{move}.lua").read_text().split("\n", 1)
    return f"{first}\n{folder.joinpath('prelude.lua').read_text()}\n{rest}"
