"""Reads many results with nothing but XREAD, and checks while it reads that no token is missing or there twice."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from headrace.broker import Broker
from headrace.wire import Chunk, Done


class ContractBrokenError(AssertionError):
    """Raised when a result stream breaks a promise of the contract."""


@dataclass(slots=True)
class Transcript:
    """What has come of one request.

    Attributes:
        ids: token ids.
        text: their text.
        done: of the last chunk, once it is here.
        arrivals_s: when each chunk came, on the monotonic clock.
        position: the entry of its stream that was read last.
        head: the chunk that stands before the result, if there is one.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    done: Done | None = None
    arrivals_s: list[float] = field(default_factory=list)
    position: str = "0-0"
    head: Chunk | None = None

    @property
    def outcome(self) -> tuple[tuple[int, ...], str, str]:
        """Tokens, text and reason: what must not depend on batches, workers and deaths."""
        return tuple(self.ids), self.text, self.done.reason if self.done else ""


class Collector:
    """Follows the results of some requests."""

    def __init__(self, broker: Broker, request_ids: Iterable[str]) -> None:
        self._broker = broker
        self.transcripts = {request_id: Transcript() for request_id in request_ids}

    @property
    def running(self) -> list[str]:
        """Requests that have a token and are not done."""
        return [name for name, transcript in self.transcripts.items() if transcript.ids and not transcript.done]

    @property
    def finished(self) -> bool:
        """All are done."""
        return all(transcript.done for transcript in self.transcripts.values())

    def poll(self, block_ms: int) -> list[str]:
        """Read what is new, waiting for it at most so long; return whose it was, in order of arrival."""
        keys = self._broker.keys
        open_streams = {
            keys.out(name): transcript.position
            for name, transcript in self.transcripts.items()
            if transcript.done is None
        }
        if not open_streams:
            return []
        came: list[str] = []
        for key, entries in self._broker.client.xread(open_streams, block=max(1, block_ms)) or ():
            name = key.decode().removeprefix(keys.out(""))
            for entry, fields in entries:
                self._append(name, entry.decode(), Chunk.decode(next(iter(fields.values()))))
                came.append(name)
        return came

    def wait(self, timeout_s: float) -> None:
        """Read until all are done.

        Raises:
            ContractBrokenError: that takes too long, or a stream is not what it must be.
        """
        self._wait("done", lambda transcript: transcript.done is not None, timeout_s)

    def wait_started(self, timeout_s: float = 120.0) -> None:
        """Read until all have a token; raises what ``wait`` does."""
        self._wait("started", lambda transcript: bool(transcript.ids), timeout_s)

    def _wait(self, state: str, is_there: Callable[[Transcript], bool], timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        while missing := [name for name, transcript in self.transcripts.items() if not is_there(transcript)]:
            self.poll(block_ms=500)
            if time.monotonic() > end_s:
                states = {name: self._broker.request_fields(name) for name in missing[:3]}
                raise ContractBrokenError(f"{len(missing)} requests are not {state} after {timeout_s:g} s: {states}")

    def _append(self, name: str, entry: str, chunk: Chunk) -> None:
        transcript = self.transcripts[name]
        where = f"{name}, entry {entry}"
        if transcript.done is not None:
            raise ContractBrokenError(f"{where}: behind the terminal chunk")
        transcript.position = entry
        if chunk.is_head:
            if entry != "0-1":
                raise ContractBrokenError(f"{where}: a head that is not at the head")
            transcript.head = chunk
            return
        if chunk.i != len(transcript.ids) or chunk.o != len(transcript.text):
            raise ContractBrokenError(
                f"{where}: begins at token {chunk.i} and character {chunk.o}, "
                f"read were {len(transcript.ids)} and {len(transcript.text)}"
            )
        if entry != f"{chunk.num_tokens_after}-{0 if chunk.ids else 2}":
            raise ContractBrokenError(f"{where}: is not called after its {chunk.num_tokens_after} tokens")
        transcript.ids += chunk.ids
        transcript.text += chunk.text
        transcript.done = chunk.done
        transcript.arrivals_s.append(time.monotonic())


def outcomes(collector: Collector, names: Sequence[str]) -> list[tuple[tuple[int, ...], str, str]]:
    """The outcomes of some requests, in the order of ``names``."""
    return [collector.transcripts[name].outcome for name in names]
