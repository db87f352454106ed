"""Every command that synchronous code sends to Redis: the scheduler, the synchronous client and the command line."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import redis

from headrace.class_costs import ClassCosts
from headrace.config import Settings
from headrace.connection import MAX_BLOCK_MS, check_contract, check_server, now_ms, open_client, translated
from headrace.entries import Entry, Position, decode_chunks, stream_entries
from headrace.errors import DecodeError, HeadraceError
from headrace.faults import fault_point
from headrace.keys import Keys, RequestStream
from headrace.leadership import Leadership
from headrace.living import Living
from headrace.moves import Call, Window, WindowCall, source
from headrace.request import CONTRACT_VERSION
from headrace.wire import Chunk, Encoding

T = TypeVar("T")
#: What HINCRBY can count on.
_COUNT = re.compile(rb"-?[0-9]{1,19}")


class Broker:
    """One queue on one server. Safe to share between threads: every call takes a connection of the client's pool.

    All methods raise BrokerUnavailableError when the server cannot be reached.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        # Any: redis-py types an answer as a union over protocols and encodings; ours are RESP2's, as bytes.
        self.client: Any = client
        self.settings = settings
        self.keys = Keys(settings.queue_name)
        self.costs = ClassCosts(client, settings)
        self.leadership = Leadership(client, settings)
        self.living = Living(client, settings, self.run)
        self._scripts: dict[str, Any] = {}

    @classmethod
    def connect(cls, settings: Settings) -> Self:
        """Open a client and see that the server and the queue are fit.

        Raises:
            BrokerUnavailableError: no server, or one too old.
            ConfigurationError: the server would evict requests.
            ContractVersionError: the queue is served under another version.
        """
        broker = cls(open_client(settings), settings)
        try:
            with translated(settings):
                check_server(broker.client.info())
                lowest, highest = broker.client.hmget(broker.keys.contract, "min", "max")
            check_contract(lowest, highest, settings.queue_name)
        except HeadraceError:
            broker.close()
            raise
        return broker

    def close(self) -> None:
        """Close every connection."""
        self.client.close()

    def run(self, call: Call[T]) -> T:
        """Send one move.

        Raises:
            OverloadedError: the server's memory is full, and the move would need more.
        """
        with translated(self.settings):
            script = self._scripts.get(call.move)
            if script is None:
                script = self._scripts[call.move] = self.client.register_script(source(call.move))
            reply = script(keys=[self.keys.load], args=call.arguments())
        return call.read(reply)

    def run_all(self, calls: Sequence[Call[T]]) -> list[T]:
        """Send calls of one move together, so that they take one round trip; each is carried out for itself.

        Raises:
            OverloadedError: as ``run``, for the first call that met it; others may have been carried out.
        """
        if not calls:
            return []
        move = calls[0].move
        answers = [self.run(calls[0])]  # and its script is known to the server
        fault_point(f"{move}.first")
        script = self._scripts[move]
        with translated(self.settings):
            pipe = self.client.pipeline(transaction=False)
            for call in calls[1:]:
                pipe.evalsha(script.sha, 1, self.keys.load, *call.arguments())
                fault_point(f"{move}.partly", pipe.execute)
            try:
                replies = pipe.execute()
            except redis.exceptions.NoScriptError:  # the server has just started again; moves may be sent twice
                return answers + [self.run(call) for call in calls[1:]]
        return answers + [call.read(reply) for call, reply in zip(calls[1:], replies, strict=True)]

    def adopt_contract(self) -> None:
        """Write this program's version to a queue that has none; a full server takes no write, not even of the same."""
        with translated(self.settings):
            lowest, highest = self.client.hmget(self.keys.contract, "min", "max")
        fault_point("contract.read")
        if lowest is None or highest is None:
            lowest, highest = self._write_contract()
            fault_point("contract.adopted")
        check_contract(lowest, highest, self.settings.queue_name)

    def _write_contract(self) -> tuple[bytes, bytes]:
        with translated(self.settings):
            pipe = self.client.pipeline(transaction=True)
            pipe.hsetnx(self.keys.contract, "min", CONTRACT_VERSION)
            pipe.hsetnx(self.keys.contract, "max", CONTRACT_VERSION)
            pipe.hmget(self.keys.contract, "min", "max")
            lowest, highest = pipe.execute()[-1]
        return lowest, highest

    def serve_tenants(self, streams: Sequence[RequestStream]) -> None:
        """Enter the tenants whose streams a scheduler reads, so that submissions for any other can be refused."""
        flows = [f"{stream.lane}:{stream.tenant}" for stream in streams if stream.tenant]
        with translated(self.settings):
            known = self.client.hmget(self.keys.tenants, flows) if flows else []
            fault_point("tenants.read")
            new = [flow for flow, virtual_time in zip(flows, known, strict=True) if virtual_time is None]
            for flow in new:
                self.client.hsetnx(self.keys.tenants, flow, 0)
                fault_point("tenants.entered")

    def now_ms(self) -> int:
        """The server's clock."""
        return now_ms(self.client, self.settings)

    # What the scheduler reads

    def wait_for_requests(self, streams: Sequence[RequestStream], wake_entry: str, timeout_ms: int) -> str:
        """Sleep until a stream has an entry or ``wake`` one behind ``wake_entry``; return wake's newest entry."""
        positions: dict[Any, Any] = {self.keys.requests(stream): "0-0" for stream in streams}
        positions[self.keys.wake] = wake_entry
        with translated(self.settings):
            reply = self.client.xread(positions, count=1, block=max(1, min(timeout_ms, MAX_BLOCK_MS)))
        for name, entries in reply or ():
            if name.decode() == self.keys.wake and entries:
                return str(entries[-1][0].decode())
        return wake_entry

    def oldest_requests(self, streams: Sequence[RequestStream], count: int) -> list[list[Entry]]:
        """Up to ``count`` entries of each stream, oldest first, in one round trip."""
        with translated(self.settings):
            pipe = self.client.pipeline(transaction=False)
            for stream in streams:
                pipe.xrange(self.keys.requests(stream), count=count)
            replies = pipe.execute()
        return [stream_entries(reply) for reply in replies]

    def window(self, count: int, *, counts_waiting: bool = True) -> Window:
        """The first ``count`` ready requests in the order of their scores; see ``WindowCall``."""
        return self.run(WindowCall(count, counts_waiting))

    def waiting_batches(self) -> Counter[str]:
        """Batches that no worker has taken yet, counted by the class of workers that they were cut for."""
        with translated(self.settings):
            entries = stream_entries(self.client.xrange(self.keys.batches))
        return Counter(entry.fields.get(b"class", b"").decode(errors="replace") for entry in entries)

    # What the client does without a script

    def add_request(self, stream: RequestStream, request_id: str, encoding: Encoding, body: bytes) -> str:
        """Put a request into its stream as anybody may, with a plain XADD; return the entry.

        Sent twice it makes two entries, of which ``admit`` ignores the second: it knows the id.
        """
        with translated(self.settings):
            entry = self.client.xadd(self.keys.requests(stream), {"id": request_id, encoding: body})
        return str(entry.decode())

    def add_cancellation(self, stream: RequestStream, request_id: str) -> str:
        """Ask for a request's end by way of its stream; return the entry."""
        with translated(self.settings):
            entry = self.client.xadd(self.keys.requests(stream), {"cancel": request_id})
        return str(entry.decode())

    # What the client and the command line read

    def chunks_after(self, request_id: str, num_tokens: int, block_ms: int, *, with_head: bool = True) -> list[Chunk]:
        """Chunks behind the first ``num_tokens`` tokens; see ``chunks_of``."""
        position = Position(num_tokens, with_head)
        return self.chunks_of({request_id: position}, block_ms).get(request_id, [])

    def chunks_of(self, positions: Mapping[str, Position], block_ms: int) -> dict[str, list[Chunk]]:
        """Chunks of several results behind a position each; waits up to ``block_ms`` for any, 0 not at all."""
        block = min(block_ms, MAX_BLOCK_MS) if block_ms > 0 else None
        names = {self.keys.out(request_id): request_id for request_id in positions}
        with translated(self.settings):
            entries_after = {name: positions[request_id].entry for name, request_id in names.items()}
            reply = self.client.xread(entries_after, block=block)
        return {names[name.decode()]: decode_chunks(entries) for name, entries in reply or ()}

    def request_fields(self, request_id: str) -> dict[str, str]:
        """The hash of a request; empty if it is unknown."""
        with translated(self.settings):
            fields = self.client.hgetall(self.keys.request(request_id))
        return {name.decode(): value.decode(errors="replace") for name, value in fields.items()}

    def load(self) -> dict[str, int]:
        """Totals over the live requests, and how many batches, ready requests and dead ones there are.

        Raises:
            DecodeError: a total is no number.
        """
        with translated(self.settings):
            pipe = self.client.pipeline(transaction=False)
            pipe.hmget(self.keys.load, "queued", "queued_tokens", "running", "running_tokens")
            pipe.zcard(self.keys.ready)
            pipe.xlen(self.keys.batches)
            pipe.xlen(self.keys.dead)
            totals, ready, batches, dead = pipe.execute()
        names = ("queued", "queued_tokens", "running", "running_tokens")
        return _counts(dict(zip(names, totals, strict=True)), self.keys.load) | {
            "ready": ready,
            "batches": batches,
            "dead": dead,
        }

    def cache_totals(self) -> dict[str, int]:
        """The response cache: ``entries``, ``bytes``, and since it was last empty ``hits``, ``misses``, ``evicted``."""
        names = ("bytes", "hits", "misses", "evicted")
        with translated(self.settings):
            pipe = self.client.pipeline(transaction=False)
            pipe.zcard(self.keys.cache_use)
            pipe.hmget(self.keys.cache_sum, *names)
            entries, totals = pipe.execute()
        return {"entries": int(entries)} | _counts(dict(zip(names, totals, strict=True)), self.keys.cache_sum)

    def stream_lengths(self, streams: Sequence[RequestStream]) -> dict[str, int]:
        """Entries not admitted yet, by the stream's suffix."""
        with translated(self.settings):
            pipe = self.client.pipeline(transaction=False)
            for stream in streams:
                pipe.xlen(self.keys.requests(stream))
            lengths = pipe.execute()
        return {stream.suffix: int(length) for stream, length in zip(streams, lengths, strict=True)}

    def dead_requests(self, count: int) -> list[Entry]:
        """Requests given up as poison, newest first."""
        with translated(self.settings):
            return stream_entries(self.client.xrevrange(self.keys.dead, count=count))

    def drop_dead(self, entries: Sequence[str]) -> int:
        """Forget entries of ``dead``; return how many there were."""
        with translated(self.settings):
            return int(self.client.xdel(self.keys.dead, *entries)) if entries else 0

    def setting(self, name: str) -> str:
        """One of the server's own settings (CONFIG GET); "" if it has none of that name."""
        with translated(self.settings):
            found = self.client.config_get(name)
        return str(found.get(name, ""))


def _counts(fields: Mapping[str, bytes | None], key: str) -> dict[str, int]:
    """A hash's counts; 0 where there is none.

    Raises:
        DecodeError: somebody has written something else there.
    """
    spoilt = [name for name, value in fields.items() if value and not _COUNT.fullmatch(value)]
    if spoilt:
        raise DecodeError(
            f"{key} holds no numbers in {', '.join(spoilt)}: put it right with HSET, or HDEL what was written"
        )
    return {name: int(value or 0) for name, value in fields.items()}
