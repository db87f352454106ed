"""``heartbeat``: a process's sign of life. No move, but a script as they are: a full server takes no plain write."""

from dataclasses import dataclass
from typing import Literal

from headrace.keys import ProcessKind
from headrace.moves.call import Argument
from headrace.moves.reply import read_texts


@dataclass(frozen=True, slots=True)
class Beat:
    """What a worker hears back.

    Attributes:
        now_ms: the server's clock.
        measure_ms: when somebody last asked the worker's class to measure its costs again; 0 for never.
    """

    now_ms: int
    measure_ms: int


@dataclass(frozen=True, slots=True)
class HeartbeatCall:
    """A process's sign of life. No move, but a script as they are: a full server takes no plain write."""

    kind: ProcessKind
    name: str
    info: str
    life_ms: int
    worker_class: str = ""
    move: Literal["heartbeat"] = "heartbeat"

    def arguments(self) -> list[Argument]:
        """See ``lua/heartbeat.lua``."""
        return [self.kind, self.name, self.info, self.life_ms, self.worker_class]

    def read(self, reply: object) -> Beat:
        """Of ``{now_ms, measure_ms}``."""
        now_ms, measure_ms = read_texts(reply)
        return Beat(int(now_ms), int(measure_ms))
