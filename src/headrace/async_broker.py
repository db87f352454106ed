"""Every command that asynchronous code sends to Redis: the courier and the asynchronous client."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import redis.asyncio
import redis.exceptions

from headrace.batch_log import BatchRun
from headrace.config import Settings
from headrace.connection import MAX_BLOCK_MS, check_contract, check_server, open_async_client, translated_async
from headrace.entries import Position, decode_chunks, stream_entries
from headrace.errors import HeadraceError
from headrace.keys import Keys, RequestStream
from headrace.moves import Beat, Call, HeartbeatCall, source
from headrace.wire import Chunk, Encoding

T = TypeVar("T")


class AsyncBroker:
    """One queue on one server, for asyncio; safe to share between tasks.

    All methods raise BrokerUnavailableError when the server cannot be reached.
    """

    def __init__(self, client: redis.asyncio.Redis, settings: Settings) -> None:
        # Any: redis-py types an answer as a union over protocols and encodings; ours are RESP2's, as bytes.
        self.client: Any = client
        self.settings = settings
        self.keys = Keys(settings.queue_name)
        self._scripts: dict[str, Any] = {}

    @classmethod
    async def connect(cls, settings: Settings) -> Self:
        """Open a client and see that the server and the queue are fit; raises as ``Broker.connect`` does."""
        broker = cls(open_async_client(settings), settings)
        try:
            with translated_async(settings):
                check_server(await broker.client.info())
                lowest, highest = await broker.client.hmget(broker.keys.contract, ["min", "max"])
            check_contract(lowest, highest, settings.queue_name)
        except HeadraceError:
            await broker.close()
            raise
        return broker

    async def close(self) -> None:
        """Close every connection."""
        await self.client.aclose()

    async def run(self, call: Call[T]) -> T:
        """Send one move.

        Raises:
            OverloadedError: the server's memory is full, and the move would need more.
        """
        with translated_async(self.settings):
            script = self._scripts.get(call.move)
            if script is None:
                script = self._scripts[call.move] = self.client.register_script(source(call.move))
            reply = await script(keys=[self.keys.load], args=call.arguments())
        return call.read(reply)

    async def run_all(self, calls: Sequence[Call[T]]) -> list[T]:
        """Send calls of one move together, so that they take one round trip; see ``Broker.run_all``."""
        if not calls:
            return []
        answers = [await self.run(calls[0])]  # and its script is known to the server
        script = self._scripts[calls[0].move]
        with translated_async(self.settings):
            pipe = self.client.pipeline(transaction=False)
            for call in calls[1:]:
                pipe.evalsha(script.sha, 1, self.keys.load, *call.arguments())
            try:
                replies = await pipe.execute()
            except redis.exceptions.NoScriptError:  # the server has just started again; moves may be sent twice
                return answers + [await self.run(call) for call in calls[1:]]
        return answers + [call.read(reply) for call, reply in zip(calls[1:], replies, strict=True)]

    async def add_request(self, stream: RequestStream, request_id: str, encoding: Encoding, body: bytes) -> str:
        """Put a request into its stream with a plain XADD, as ``Broker.add_request`` does; return the entry."""
        with translated_async(self.settings):
            entry = await self.client.xadd(self.keys.requests(stream), {"id": request_id, encoding: body})
        return str(entry.decode())

    async def add_cancellation(self, stream: RequestStream, request_id: str) -> str:
        """Ask for a request's end by way of its stream; return the entry."""
        with translated_async(self.settings):
            entry = await self.client.xadd(self.keys.requests(stream), {"cancel": request_id})
        return str(entry.decode())

    async def wait_for_batch(self, last_entry: str) -> None:
        """Sleep until ``batches`` has an entry behind ``last_entry``, or for two seconds."""
        with translated_async(self.settings):
            await self.client.xread({self.keys.batches: last_entry}, count=1, block=MAX_BLOCK_MS)

    async def published_chunks(self, request_id: str) -> list[Chunk]:
        """Everything published of a request, oldest first."""
        with translated_async(self.settings):
            reply = await self.client.xrange(self.keys.out(request_id))
        return [Chunk.decode(next(iter(entry.fields.values()))) for entry in stream_entries(reply)]

    async def chunks_after(
        self, request_id: str, num_tokens: int, block_ms: int, *, with_head: bool = True
    ) -> list[Chunk]:
        """Chunks behind the first ``num_tokens`` tokens; see ``chunks_of``."""
        position = Position(num_tokens, with_head)
        return (await self.chunks_of({request_id: position}, block_ms)).get(request_id, [])

    async def chunks_of(self, positions: Mapping[str, Position], block_ms: int) -> dict[str, list[Chunk]]:
        """Chunks of several results behind a position each; waits up to ``block_ms`` for any, 0 not at all."""
        block = min(block_ms, MAX_BLOCK_MS) if block_ms > 0 else None
        names = {self.keys.out(request_id): request_id for request_id in positions}
        with translated_async(self.settings):
            entries_after = {name: positions[request_id].entry for name, request_id in names.items()}
            reply = await self.client.xread(entries_after, block=block)
        return {names[name.decode()]: decode_chunks(entries) for name, entries in reply or ()}

    async def request_fields(self, request_id: str) -> dict[str, str]:
        """The hash of a request; empty if it is unknown."""
        with translated_async(self.settings):
            fields = await self.client.hgetall(self.keys.request(request_id))
        return {name.decode(): value.decode(errors="replace") for name, value in fields.items()}

    async def heartbeat(self, worker: str, details: dict[str, object], life_ms: int, worker_class: str = "") -> Beat:
        """Say that a worker lives, what it holds and of which class it is."""
        return await self.run(HeartbeatCall("worker", worker, json.dumps(details), life_ms, worker_class))

    async def publish_costs(self, worker_class: str, table: bytes) -> None:
        """Publish a class's cost table; raises OverloadedError where the server's memory is full."""
        with translated_async(self.settings):
            await self.client.hset(self.keys.cost, worker_class, table)

    async def log_batch(self, ran: BatchRun) -> None:
        """Add what a batch really cost to the log of batches; raises OverloadedError as above."""
        with translated_async(self.settings):
            await self.client.xadd(
                self.keys.batch_log, ran.fields(), maxlen=self.settings.batch_log_entries, approximate=True
            )

    async def forget_worker(self, worker: str) -> None:
        """Take a worker that ended in order off the list."""
        with translated_async(self.settings):
            pipe = self.client.pipeline(transaction=False)
            pipe.delete(self.keys.worker(worker))
            pipe.zrem(self.keys.workers, worker)
            await pipe.execute()

    async def setting(self, name: str) -> str:
        """One of the server's own settings (CONFIG GET); "" if it has none of that name."""
        with translated_async(self.settings):
            found = await self.client.config_get(name)
        return str(found.get(name, ""))
