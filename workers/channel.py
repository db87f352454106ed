"""What courier and engine say to each other over a Unix socket: messages, and their framing.

The engine listens, the courier connects. A frame is a 4-byte big-endian length and a MessagePack array whose first
element is the message's kind. Either end may die at any time; the other sees the end of the stream, forgets the rows
of that connection, and waits for the next one.
"""

import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import ClassVar, Literal

import msgpack

from headrace.errors import DecodeError
from headrace.job import SamplingParams

_LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 256 << 20
#: Where a worker tells its courier on which socket its engine listens.
SOCKET_VARIABLE = "HEADRACE_ENGINE_SOCKET"

Finish = Literal["", "stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Ready:
    """Engine to courier, first message of a connection: what it serves and can hold.

    Attributes:
        pid: process id of the engine.
        revision: of the model loaded.
        max_rows: rows that may be in flight at once.
        kv_tokens: tokens (prompt + max_tokens, summed over rows) that fit into the key-value memory.
        worker_class: workers of one class cost the same; see ``headrace.keys``.
        max_batches: that may be in flight at once, where rows of one do not join those of another; 0: any number.
    """

    kind: ClassVar[str] = "ready"
    pid: int
    revision: str
    max_rows: int
    kv_tokens: int
    worker_class: str = ""
    max_batches: int = 0


@dataclass(frozen=True, slots=True)
class Add:
    """Courier to engine: start one row, or go on with one that another worker began.

    Attributes:
        row: the courier's number for the row, never used twice on a connection.
        prompt_ids: token ids of the prompt.
        output_ids: token ids generated before, to be prefilled behind the prompt.
        params: sampling parameters; ``max_tokens`` and ``min_tokens`` count ``output_ids`` too.
    """

    kind: ClassVar[str] = "add"
    row: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Drop:
    """Courier to engine: forget these rows now; unknown and ended ones are no error."""

    kind: ClassVar[str] = "drop"
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Engine to courier: one step's result.

    Attributes:
        tokens: (row, token id, finish) a row that produced a token; after a finish other than "" the row is gone.
        error: why, where a finish is "error" (the token id is then meaningless); else "".
        logprobs: (row, logprob of its token, the most probable tokens with theirs) a row that asked for them.
        step_ms: what the step took.
        num_tokens: computed in the step.
        prompts: (row, tokens) a row of which a part of the prompt was computed.
    """

    kind: ClassVar[str] = "tokens"
    tokens: tuple[tuple[int, int, Finish], ...]
    error: str = ""
    logprobs: tuple[tuple[int, float, tuple[tuple[int, float], ...]], ...] = ()
    step_ms: float = 0.0
    num_tokens: int = 0
    prompts: tuple[tuple[int, int], ...] = ()

    @property
    def ended(self) -> tuple[int, ...]:
        """Rows whose prompts are computed."""
        return tuple(row for row, _, _ in self.tokens)


@dataclass(frozen=True, slots=True)
class EncodeRow:
    """One request to an encoder.

    Attributes:
        row: the courier's number for it, never used twice on a connection.
        job: an encoded ``headrace.encoder_job.EncoderJob``.
    """

    row: int
    job: bytes


@dataclass(frozen=True, slots=True)
class Encode:
    """Courier to an encoder's engine: compute these rows, which came in one batch."""

    kind: ClassVar[str] = "encode"
    rows: tuple[EncodeRow, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoder's engine to courier: one step's result.

    Attributes:
        answers: (row, what was found of its texts, "") a row that is complete, or (row, b"", why it is given up); the
            row is gone.
        step_ms: what the step took.
        num_tokens: computed in the step.
        prompts: (row, tokens) a row of which texts were computed.
    """

    kind: ClassVar[str] = "encoded"
    answers: tuple[tuple[int, bytes, str], ...]
    step_ms: float = 0.0
    num_tokens: int = 0
    prompts: tuple[tuple[int, int], ...] = ()

    @property
    def ended(self) -> tuple[int, ...]:
        """Rows that are complete."""
        return tuple(row for row, _, _ in self.answers)


@dataclass(frozen=True, slots=True)
class Costs:
    """Engine to courier: what batches cost, at the beginning of a connection and whenever that has changed.

    Attributes:
        table: an encoded ``headrace.workers.costs.table.CostTable``.
    """

    kind: ClassVar[str] = "costs"
    table: bytes


@dataclass(frozen=True, slots=True)
class Measure:
    """Courier to engine: measure costs again, as soon as there is nothing to compute."""

    kind: ClassVar[str] = "measure"


Message = Ready | Add | Drop | Tokens | Encode | Encoded | Costs | Measure
_KINDS: dict[str, type[Message]] = {
    message.kind: message for message in (Ready, Add, Drop, Tokens, Encode, Encoded, Costs, Measure)
}


def encode(message: Message) -> bytes:
    """Make one frame of a message."""
    # Only what a message holds of dataclasses is taken apart: of many rows' tokens there is nothing to copy.
    fields = (getattr(message, name) for name in message.__slots__)
    body: bytes = msgpack.packb((message.kind, *fields), default=astuple)
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Turns a byte stream back into messages; feed it whatever the socket gave."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages that ``data`` completes.

        Raises:
            DecodeError: a frame is too long or is not a message.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise DecodeError(f"frame of {length} bytes, more than {MAX_FRAME_BYTES}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield _decode(body)


def _decode(body: bytes) -> Message:
    try:
        kind, *fields = msgpack.unpackb(body, use_list=False)
        if kind == Add.kind:
            row, prompt_ids, output_ids, params = fields
            return Add(row, prompt_ids, output_ids, SamplingParams(*params))
        if kind == Encode.kind:
            (rows,) = fields
            return Encode(tuple(EncodeRow(*row) for row in rows))
        return _KINDS[kind](*fields)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise DecodeError(f"not a message of the engine's channel: {error}") from error
