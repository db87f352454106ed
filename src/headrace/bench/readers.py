"""Producers of a benchmark, in processes of their own: each submits its part and reads every stream to its end.

A reader is a task of its process's event loop with a connection of its own, as ``AsyncClient`` has it. The processes
talk to the benchmark by lines of JSON: requests in, times and counts out, times on the clock that all share.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from headrace.config import Settings
from headrace.errors import MeasurementError
from headrace.producer.async_client import AsyncClient

#: A process reads a few thousand chunks a second; half of the cores are the fleet's.
_NUM_PROCESSES = max(1, min(8, (os.cpu_count() or 1) // 2))
#: A prompt and its number of tokens.
Request = tuple[Sequence[int], int]


@dataclass(frozen=True, slots=True)
class Part:
    """What one process has seen: seconds on the monotonic clock, and tokens in all."""

    first_submit_s: float
    last_token_s: float
    num_tokens: int


class Readers:
    """The processes; use it in a ``with``.

    Args:
        settings: of the queue.
        num_processes: among which requests are dealt.
    """

    def __init__(self, settings: Settings, num_processes: int = _NUM_PROCESSES) -> None:
        self._settings = settings
        self._num_processes = num_processes
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        command = [sys.executable, "-P", "-m", "headrace.bench.readers"]
        for _ in range(self._num_processes):
            self._processes.append(
                subprocess.Popen(
                    command, env=self._settings.to_environ(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
        self.run([], 0.0)  # until all are there
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def run(self, requests: Sequence[Request], temperature: float) -> float:
        """Submit requests and read them to their ends.

        Returns:
            Tokens a second, from the first submission to the last token; 0 without requests.

        Raises:
            MeasurementError: a process failed, or a request has not got its tokens.
        """
        for number, process in enumerate(self._processes):
            assert process.stdin is not None
            process.stdin.write(json.dumps([temperature, requests[number :: self._num_processes]]) + "\n")
            process.stdin.flush()
        parts = [self._part(process) for process in self._processes]
        num_tokens, wanted = sum(part.num_tokens for part in parts), sum(length for _, length in requests)
        if num_tokens != wanted:
            raise MeasurementError(f"readers got {num_tokens} tokens, not {wanted}")
        if not num_tokens:
            return 0.0
        seconds = max(part.last_token_s for part in parts) - min(part.first_submit_s for part in parts)
        return num_tokens / seconds

    @staticmethod
    def _part(process: "subprocess.Popen[str]") -> Part:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise MeasurementError(f"a reader ended with status {process.wait()}; what it said is above")
        return Part(*json.loads(line))


async def _read(client: AsyncClient, request: Request, temperature: float) -> tuple[float, int]:
    """Submit one request and read its stream: when its last token came, and how many there were."""
    prompt, length = request
    handle = await client.submit(list(prompt), max_tokens=length, temperature=temperature, ignore_eos=True)
    num_tokens = 0
    async for chunk in handle.stream():
        num_tokens += len(chunk.ids)
    return time.monotonic(), num_tokens


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    async with AsyncClient(Settings.load(), timeout_s=600) as client:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            temperature, requests = json.loads(line)
            begin_s = time.monotonic()
            ends = await asyncio.gather(*(_read(client, request, temperature) for request in requests))
            last_s = max((last for last, _ in ends), default=begin_s)
            print(json.dumps([begin_s, last_s, sum(num for _, num in ends)]), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve())
