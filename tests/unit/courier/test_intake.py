"""Claimed requests become rows: heads are no part of a result, and each of several results has its own seed."""

import asyncio
from dataclasses import replace
from typing import cast

from tests.unit.courier.bytes_tokenizer import byte_tokenizer

from headrace.async_broker import AsyncBroker
from headrace.job import Job, SamplingParams, child_seed
from headrace.moves import ClaimedRow
from headrace.wire import Chunk, Echo, TokenLogprobs
from headrace.workers.channel import Add
from headrace.workers.courier.intake import Intake, Start
from headrace.workers.courier.row import Row

PARAMS = SamplingParams(50, 0, 1.0, 0, 1.0, 0.0, 7, (), (), False, logprobs=1)
PUBLISHED = [
    Chunk(0, 0, (), "", echo=Echo((104, 105), "hi")),
    Chunk(0, 0, (97, 98), "ab", logprobs=(TokenLogprobs(-0.1, ()), TokenLogprobs(-0.2, ()))),
]


class Stored:
    """Stands for the broker: what was published of any request."""

    def __init__(self, published: list[Chunk]) -> None:
        self._published = published

    async def published_chunks(self, request_id: str) -> list[Chunk]:
        return self._published


def start(
    request_id: str, num_tokens: int, params: SamplingParams = PARAMS, published: list[Chunk] = PUBLISHED
) -> Start:
    intake = Intake(cast(AsyncBroker, Stored(published)), byte_tokenizer(), "w", "r1")
    job = Job((104, 105), params, "r1").encode()
    num_chars = sum(len(chunk.text) for chunk in published) if num_tokens else 0
    return asyncio.run(intake.start(ClaimedRow(request_id, 2, num_tokens, num_chars, "mp", job, 0, "")))


def test_a_row_goes_on_behind_its_tokens_and_not_behind_its_echo() -> None:
    begun = start("a", 2)
    assert isinstance(begun.add, Add)
    assert isinstance(begun.row, Row)
    assert (begun.add.prompt_ids, begun.add.output_ids) == ((104, 105), (97, 98))
    begun.row.push(99, TokenLogprobs(-0.5, ()))
    begun.row.end("length")
    emit = begun.row.next_emit(0.0, renew_after_s=100.0)
    assert emit is not None
    chunk = Chunk.decode(emit.chunk)
    assert (chunk.i, chunk.text, emit.entry) == (2, "c", "3-0")
    assert chunk.done is not None
    assert chunk.done.cumulative_logprob == -0.1 + -0.2 + -0.5


def test_a_stop_string_ends_a_row_also_where_another_worker_held_its_beginning_back() -> None:
    params = replace(PARAMS, stop=("bc",), logprobs=None)
    held_back = [Chunk(0, 0, (97, 98), "a")]
    for num_tokens, tokens, text in ((0, b"abcd", "a"), (2, b"cd", "")):
        row = start("a", num_tokens, params, held_back).row
        assert isinstance(row, Row)
        for token_id in tokens:
            row.push(token_id)
        emit = row.next_emit(0.0, renew_after_s=100.0)
        assert emit is not None
        chunk = Chunk.decode(emit.chunk)
        assert (chunk.text, chunk.num_tokens_after) == (text, 3)
        assert chunk.done is not None
        assert chunk.done.reason == "stop"


def test_each_of_several_results_draws_numbers_of_its_own_and_the_first_those_of_the_seed() -> None:
    seeds = []
    for name in ("a", "a/0", "a/1", "a/2"):
        add = start(name, 0).add
        assert isinstance(add, Add)
        seeds.append(add.params.seed)
    assert seeds == [7, 7, child_seed(7, 1), child_seed(7, 2)]
    assert len({child_seed(seed, index) for seed in range(50) for index in range(50)}) == 2500
    assert all(0 <= child_seed(2**63 - 1, index) < 2**63 for index in range(128))
