"""The courier's end of the engine's channel."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from headrace.errors import DecodeError
from headrace.workers.channel import Add, Decoder, Drop, Encode, EncodeRow, Measure, Message, Ready, encode

_READ_BYTES = 1 << 16
_RETRY_S = 0.05


class EngineLink:
    """A connection to an engine that has said what it is."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ready: Ready, messages: AsyncIterator[Message]
    ) -> None:
        self.ready = ready
        self.messages = messages
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, socket_path: str) -> "EngineLink":
        """Wait until an engine listens and has loaded its model.

        Raises:
            DecodeError: what answers is not an engine.
        """
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(socket_path)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(_RETRY_S)
                continue
            messages = _messages(reader)
            try:
                first = await anext(messages)
            except (StopAsyncIteration, ConnectionError):
                writer.close()
                await asyncio.sleep(_RETRY_S)
                continue
            if not isinstance(first, Ready):
                raise DecodeError(f"the engine began with {first.kind} instead of {Ready.kind}")
            return cls(reader, writer, first, messages)

    async def add(self, rows: Sequence[Add | EncodeRow]) -> None:
        """Start rows. A broken connection is no error here: whoever reads ``messages`` sees it end."""
        texts = tuple(row for row in rows if isinstance(row, EncodeRow))
        messages: list[Message] = [row for row in rows if isinstance(row, Add)]
        if texts:
            messages.append(Encode(texts))
        self._writer.write(b"".join(encode(message) for message in messages))
        await self._drain()

    async def drop(self, numbers: Sequence[int]) -> None:
        """Stop rows."""
        if numbers:
            self._writer.write(encode(Drop(tuple(numbers))))
            await self._drain()

    async def measure(self) -> None:
        """Have costs measured again."""
        self._writer.write(encode(Measure()))
        await self._drain()

    def close(self) -> None:
        """End the connection; the engine forgets its rows."""
        self._writer.close()

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except ConnectionError:
            self._writer.close()


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    """Messages until the engine's end closes, cleanly or not."""
    decoder = Decoder()
    while True:
        try:
            data = await reader.read(_READ_BYTES)
        except ConnectionError:
            return
        if not data:
            return
        for message in decoder.feed(data):
            yield message
