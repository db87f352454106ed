"""The growing text of one request: token ids in, certain text out.

Every piece of text comes from the ids alone, in their order, so that another worker which replays the published ids
continues with the same text to the byte. A token costs the length of its own text, never that of the whole.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.workers.text.pieces import BytePieces, TextPieces
from headrace.workers.text.stop_strings import StopStrings
from headrace.workers.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Delta:
    """What one token made certain.

    Attributes:
        text: the text that is certain now and was not before; may be empty.
        stopped: a stop string is complete; the text ends before it.
    """

    text: str
    stopped: bool


class Detokenizer:
    """The text of one request, as its tokens arrive.

    Held back are half characters and what may be the beginning of a stop string. Special tokens add no text.
    The joined deltas and the flush equal ``tokenizer.decode(ids)`` when no stop string is met (where the tokenizer
    drops a text's first space and the prompt has text, they equal what the ids add to the decoded prompt).
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str]) -> None:
        """Begin the text that follows a prompt.

        Args:
            tokenizer: of the model that makes the tokens.
            prompt_ids: the prompt; whether it holds text decides about the first space in some tokenizers.
            stop: the strings that end the text, none of them empty.

        Raises:
            ValueError: a stop string is empty.
            ModelError: the tokenizer decodes in a way that is not supported.
        """
        self._assembler = _assembler(tokenizer, prompt_ids)
        self._stop_strings = StopStrings(stop) if stop else None
        self._held = ""
        self._stopped = False

    def push(self, token_id: int) -> Delta:
        """Take the next token; after a stop nothing changes any more.

        Raises:
            IndexError: the id is not one of the model's.
        """
        if self._stopped:
            return Delta("", True)
        text = self._assembler.push(token_id)
        if self._stop_strings is None:
            return Delta(text, False)
        return self._search(self._stop_strings, text) if text else Delta("", False)

    def flush(self) -> str:
        """End the text and return what was held back; half characters become U+FFFD. Nothing can follow."""
        if self._stopped:
            return ""
        text = self._assembler.flush()
        if self._stop_strings is not None:
            text = self._search(self._stop_strings, text).text + ("" if self._stopped else self._held)
        self._held = ""
        self._stopped = True
        return text

    def _search(self, stop_strings: StopStrings, text: str) -> Delta:
        held = self._held + text
        hit = stop_strings.find(text)
        if hit is not None:
            num_read, length = hit
            self._stopped = True
            return Delta(held[: len(self._held) + num_read - length], True)
        cut = len(held) - stop_strings.num_pending
        self._held = held[cut:]
        return Delta(held[:cut], False)


def _assembler(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> "_ByteAssembler | _TextAssembler":
    pieces = tokenizer.pieces
    if isinstance(pieces, BytePieces):
        return _ByteAssembler(pieces)
    # Only what stands at the very beginning of a text loses its space.
    begins = all(pieces.table[token_id] == "" for token_id in prompt_ids)
    return _TextAssembler(pieces, strips_space=pieces.strips_first_space and begins)


class _ByteAssembler:
    """Joins byte pieces; UTF-8's own rules tell which bytes may still become a character."""

    def __init__(self, pieces: BytePieces) -> None:
        self._table = pieces.table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> str:
        return self._decode(self._table[token_id])

    def flush(self) -> str:
        return self._decode(b"", True)


class _TextAssembler:
    """Joins text pieces; a run of byte pieces is held until another piece ends it.

    The decoder judges a run as a whole: one invalid byte turns all its bytes into U+FFFD, a valid character before it
    too. So nothing of a run is certain before its end.
    """

    def __init__(self, pieces: TextPieces, *, strips_space: bool) -> None:
        self._table = pieces.table
        self._run = bytearray()
        self._strips_space = strips_space

    def push(self, token_id: int) -> str:
        piece = self._table[token_id]
        if isinstance(piece, int):
            self._run.append(piece)
            return ""
        # A special token is not seen by the decoder, so it does not end a run.
        return self._strip(self._end_run() + piece) if piece else ""

    def flush(self) -> str:
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        if not self._run:
            return ""
        run = bytes(self._run)
        self._run.clear()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _strip(self, text: str) -> str:
        if self._strips_space and text:
            self._strips_space = False
            return text.removeprefix(" ")
        return text
