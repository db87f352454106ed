"""What a reader has not seen yet: chunks cut by token index and by text offset. Pure.

After a broker came back from an older state, its workers publish part of a result a second time, and cut it into
other chunks. A reader that counts tokens and characters still gets each of them once.
"""

from dataclasses import replace

from headrace.errors import DecodeError
from headrace.wire import Chunk


class Cutter:
    """A reader's place in one result: how many tokens and characters it holds.

    Attributes:
        num_tokens: tokens held.
        num_chars: Unicode code points of text held; None until the first chunk tells.
        has_head: the result's head was seen, or is not wanted, because the reader holds tokens behind it.

    Raises:
        ValueError: a count is negative.
    """

    def __init__(self, num_tokens: int = 0, num_chars: int | None = None) -> None:
        if num_tokens < 0 or (num_chars or 0) < 0:
            raise ValueError(f"a reader cannot hold {num_tokens} tokens and {num_chars} characters")
        self.num_tokens = num_tokens
        self.num_chars = 0 if num_tokens == 0 else num_chars
        self.has_head = num_tokens > 0
        self._first = num_tokens
        self._ids: list[int] = []

    def cut(self, chunk: Chunk) -> Chunk | None:
        """Return what is new in a chunk, which then counts as held; None if nothing is.

        Raises:
            DecodeError: tokens or characters are missing in front of the chunk; tokens that are held have changed; or
                the reader's place lies inside the chunk and only its token is known, so that the text cannot be cut.
        """
        if chunk.is_head:
            new, self.has_head = not self.has_head, True
            return chunk if new else None
        self._check(chunk)
        num_held = max(0, min(self.num_tokens - chunk.i, len(chunk.ids)))
        ids = chunk.ids[num_held:]
        num_chars = self._chars_held(chunk, num_held)
        if num_chars is None:
            return replace(chunk, ids=(), text="", logprobs=()) if chunk.done else None
        text = chunk.text[num_chars - chunk.o :]
        piece = Chunk(self.num_tokens, num_chars, ids, text, chunk.done, chunk.logprobs[num_held:])
        self.num_tokens += len(ids)
        self.num_chars = num_chars + len(text)
        self._ids += ids
        return piece if ids or text or chunk.done else None

    def _check(self, chunk: Chunk) -> None:
        if chunk.i > self.num_tokens:
            raise DecodeError(f"the result has a gap: token {self.num_tokens} is missing, the next is {chunk.i}")
        for index in range(max(chunk.i, self._first), min(chunk.num_tokens_after, self.num_tokens)):
            was, now = self._ids[index - self._first], chunk.ids[index - chunk.i]
            if was != now:
                raise DecodeError(f"the result changed: token {index} was {was} and is {now} now")
        if chunk.done and chunk.done.reason in ("stop", "length") and chunk.num_tokens_after < self.num_tokens:
            if chunk.num_tokens_after < self._first:
                raise DecodeError(
                    f"the result has only {chunk.num_tokens_after} tokens, and {self._first} are said to be held"
                )
            raise DecodeError(
                f"the result changed: it ended behind token {chunk.num_tokens_after}, and {self.num_tokens} are held"
            )

    def _chars_held(self, chunk: Chunk, num_held: int) -> int | None:
        """Characters held in front of what is new in a chunk; None if it lies too far back to tell."""
        if self.num_chars is not None:
            if chunk.o > self.num_chars:
                raise DecodeError(f"the result has a gap: character {self.num_chars} is missing, the next is {chunk.o}")
            return self.num_chars
        if chunk.i == self.num_tokens:
            return chunk.o
        if chunk.num_tokens_after > self.num_tokens:
            raise DecodeError(
                f"token {self.num_tokens} lies inside a chunk that begins at {chunk.i}: "
                "say how many characters are held, too"
            )
        return chunk.o + len(chunk.text) if num_held and chunk.num_tokens_after == self.num_tokens else None


def without_end(piece: Chunk) -> Chunk | None:
    """The tokens of a last chunk that ends in an error; None if it has none."""
    return replace(piece, done=None) if piece.ids or piece.text else None
