"""``throughput-redis/<shape>``: the throughput's requests through a whole fleet, against the engine alone.

A private server, a scheduler and a worker, as ``headrace up`` starts them, a tokenizer of the vocabulary's size, text
made of every token, and a reader for each request's stream, in several processes. Time counts from the first
submission to the last token in a reader's hands.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from headrace.bench.bench import Bench
from headrace.bench.case import Case, Figure
from headrace.bench.readers import Readers
from headrace.bench.throughput_cases import TEMPERATURE, throughput
from headrace.bench.workload import Lengths, falling, ragged
from headrace.config import Settings
from headrace.testing.fleet import Fleet
from headrace.testing.servers import Server


def cases(shape: str) -> list[Case]:
    """The case of one shape."""
    return [Case(f"throughput-redis/{shape}", shape, partial(_measure, shape=shape))]


def _measure(bench: Bench, *, shape: str) -> Iterator[Figure]:
    alone = throughput(bench, shape)
    requests = bench.requests(shape)

    def rate(lengths: list[Lengths]) -> float:
        adds = requests.adds(lengths, TEMPERATURE)
        return readers.run([(add.prompt_ids, add.params.max_tokens) for add in adds], TEMPERATURE)

    with bench.model(shape) as folder, Server("valkey") as server:
        settings = _settings(bench, folder, server)
        with Fleet(settings), Readers(settings) as readers:
            rate(list(falling(bench.effort.num_requests)))
            rates = [rate(ragged(bench.effort.num_requests)) for _ in bench.rounds()]
    yield Figure.median("output_tokens_per_s", rates, "tokens/s", "the engine alone", alone)


def _settings(bench: Bench, folder: Path, server: Server) -> Settings:
    machine = bench.machine
    return Settings.load(
        redis_url=server.url,
        model=str(folder),
        device=str(machine.device),
        dtype=machine.dtype_name,
        max_context_tokens=4096,
        step_tokens=bench.effort.step_tokens,
        measure_ms=0,
        drain_ms=0,
        log_level="warning",
    )
