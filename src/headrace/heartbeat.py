"""What a process last said of itself, decoded. Pure: the only place where bytes become heartbeats.

A heartbeat that breaks a rule is none for anybody: were one reader to take what another refuses, the scheduler would
cut batches for workers that ``headrace status`` does not know.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from headrace.checks import measure, moment_ms, text, whole
from headrace.errors import DecodeError

#: Ours have less than one.
_MAX_INFO_BYTES = 65_536

#: What a heartbeat may hold.
Detail = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a process last said of itself: when, by the server's clock, and what."""

    name: str
    seen_ms: int
    details: Mapping[str, Detail]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker's last heartbeat."""

    worker: str
    seen_ms: int
    max_rows: int
    kv_tokens: int
    num_rows: int
    details: Mapping[str, Detail]

    @property
    def worker_class(self) -> str:
        """Workers of one class cost the same; "" where it says nothing."""
        return str(self.details.get("class", ""))

    @property
    def tokens_per_s(self) -> float:
        """That it published of late; 0 where it says nothing."""
        return float(self.details.get("tokens_per_s") or 0.0)


def read_heartbeat(name: str, seen_ms: float, info: bytes) -> Heartbeat:
    """A heartbeat from its JSON: a flat object of texts and numbers.

    Args:
        name: of the process.
        seen_ms: its score among those that live.
        info: of its hash.

    Raises:
        DecodeError: it is none.
    """
    try:
        text(name, "its name")
        details = _details(info)
        return Heartbeat(name, moment_ms(seen_ms, "when it was seen"), details)
    except DecodeError as error:
        raise DecodeError(f"heartbeat of {name!r}: {error}") from error


def read_worker(worker: str, seen_ms: float, info: bytes) -> WorkerInfo:
    """A worker's heartbeat.

    Raises:
        DecodeError: it is none, or lacks what every worker says.
    """
    beat = read_heartbeat(worker, seen_ms, info)
    details = beat.details
    try:
        max_rows, kv_tokens = (whole(details.get(name), name, least=1) for name in ("max_rows", "kv_tokens"))
        num_rows = whole(details.get("num_rows"), "num_rows")
        text(details.get("class", ""), "class")
        measure(details.get("tokens_per_s", 0.0), "tokens_per_s")
    except DecodeError as error:
        raise DecodeError(f"heartbeat of {worker!r}: {error}") from error
    return WorkerInfo(worker, beat.seen_ms, max_rows, kv_tokens, num_rows, details)


def _details(info: bytes) -> dict[str, Detail]:
    if len(info) > _MAX_INFO_BYTES:
        raise DecodeError(f"{len(info)} bytes; at most {_MAX_INFO_BYTES} are read")
    try:
        details = json.loads(info)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"not JSON: {error}") from error
    if not isinstance(details, dict):
        raise DecodeError("not an object")
    for name, value in details.items():
        text(name, "the name of a detail")
        if isinstance(value, str):
            text(value, name)
        elif isinstance(value, int | float):
            measure(abs(value), name)
        elif value is not None:
            raise DecodeError(f"{name} is neither text nor number")
    return details
