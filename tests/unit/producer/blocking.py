"""The asynchronous client with the surface of the synchronous one, so that one suite of tests judges both."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar, cast

from headrace.config import Settings
from headrace.producer import AsyncClient
from headrace.producer.async_handle import AsyncHandle
from headrace.producer.outcome import Result
from headrace.wire import Chunk

T = TypeVar("T")


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        # Errors travel as values: on its way through a future a TimeoutError would lose its cause.
        async def outcome() -> tuple[T | None, Exception | None]:
            try:
                return await work, None
            except Exception as error:  # noqa: BLE001 - raised again below
                return None, error

        value, error = asyncio.run_coroutine_threadsafe(outcome(), self._loop).result()
        if error is not None:
            raise error
        return cast(T, value)

    def items(self, iterator: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> list[T]:
            async for item in iterator:
                return [item]
            return []

        try:
            while found := self.wait(following()):
                yield found[0]
        finally:
            self.wait(iterator.aclose())  # type: ignore[attr-defined]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class BlockingHandle:
    def __init__(self, loop: Loop, handle: AsyncHandle) -> None:
        self.id = handle.id
        self.known_already = handle.known_already
        self._loop = loop
        self._handle = handle

    def stream(
        self, after: int = 0, *, after_chars: int | None = None, timeout_s: float | None = None
    ) -> Iterator[Chunk]:
        return self._loop.items(self._handle.stream(after, after_chars=after_chars, timeout_s=timeout_s))

    def text(self, *, timeout_s: float | None = None) -> Iterator[str]:
        return self._loop.items(self._handle.text(timeout_s=timeout_s))

    def result(self, timeout_s: float | None = None) -> Result:
        return self._loop.wait(self._handle.result(timeout_s))

    def cancel(self) -> str:
        return self._loop.wait(self._handle.cancel())


class BlockingClient:
    """Has the surface of ``Client``."""

    def __init__(self, settings: Settings, **given: Any) -> None:
        self._client = AsyncClient(settings, **given)
        self._loop = Loop()

    def submit(self, *prompt: Any, **fields: Any) -> BlockingHandle:
        return BlockingHandle(self._loop, self._loop.wait(self._client.submit(*prompt, **fields)))

    def generate(self, *prompt: Any, **fields: Any) -> Iterator[str]:
        return self._loop.items(self._client.generate(*prompt, **fields))

    def attach(self, request_id: str, **given: Any) -> BlockingHandle:
        return BlockingHandle(self._loop, self._client.attach(request_id, **given))

    def cancel(self, request_id: str) -> str:
        return self._loop.wait(self._client.cancel(request_id))

    def close(self) -> None:
        self._loop.wait(self._client.close())
        self._loop.close()

    def __enter__(self) -> "BlockingClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
