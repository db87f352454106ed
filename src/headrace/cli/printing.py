"""A result on the terminal, as it comes."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator

from headrace.encoder_result import read_answer
from headrace.errors import ConfigurationError
from headrace.wire import Chunk


class Meter:
    """Measures a result while it passes.

    Attributes:
        start_s: when the request went in, by the monotonic clock.
    """

    def __init__(self, start_s: float) -> None:
        self.start_s = start_s
        self._first_s = self._last_s = start_s
        self._num_first = self._num_tokens = 0

    def watch(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Hand the chunks on."""
        for chunk in chunks:
            self._last_s = time.monotonic()
            if self._num_tokens == 0:
                self._first_s, self._num_first = self._last_s, len(chunk.ids)
            self._num_tokens += len(chunk.ids)
            yield chunk

    def __str__(self) -> str:
        first_ms = (self._first_s - self.start_s) * 1000
        # The first chunk's tokens came before the time that is measured.
        num_timed, seconds = self._num_tokens - self._num_first, self._last_s - self._first_s
        rate = f"{num_timed / seconds:.1f} tokens/s" if num_timed and seconds > 0 else "no rate"
        return f"first token after {first_ms:.0f} ms, then {rate} ({self._num_tokens} tokens)"


def timeout_s(seconds: float | None) -> float:
    """What ``--timeout-s`` means to a client: without it, somebody who watches decides when it is enough.

    Raises:
        ConfigurationError: it is negative or not a number.
    """
    if seconds is None:
        return math.inf
    if not seconds >= 0:  # nan is not
        raise ConfigurationError(f"--timeout-s {seconds}: must be at least 0")
    return seconds


def print_chunks(chunks: Iterator[Chunk], *, as_json: bool) -> None:
    """Write text, or a line of JSON a chunk, each at the moment at which it comes.

    Of several results each text is written when it has ended, behind its index. What an encoder answers is a line of
    JSON in any case.
    """
    last = "\n"
    held: defaultdict[int, list[str]] = defaultdict(list)
    try:
        for chunk in chunks:
            if as_json:
                print(chunk.encode("json").decode(), flush=True)
                continue
            text = (chunk.echo.text if chunk.echo is not None else "") + chunk.text
            if chunk.index is not None:
                held[chunk.index].append(text)
                text = f"[{chunk.index}] {''.join(held.pop(chunk.index))}\n" if chunk.done is not None else ""
            if text:
                print(text, end="", flush=True)
                last = text
            if chunk.done is not None and chunk.done.result is not None:
                print_json(read_answer(chunk.done.result).fields())
    finally:
        if not last.endswith("\n"):
            print(flush=True)


def print_json(value: object) -> None:
    """Write one line of JSON."""
    print(json.dumps(value, ensure_ascii=False), flush=True)
