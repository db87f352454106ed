"""A request to an encoder in a worker's hands: one chunk, its last, whatever was found of its texts."""

import asyncio
from array import array
from typing import Any

import msgpack
import pytest

from headrace.encoder_job import EncoderJob, EncoderParams, pack_ids
from headrace.encoder_request import Task
from headrace.moves import ClaimedRow, EmitRow, Emitted
from headrace.testing.words import encoder_tokenizer
from headrace.wire import Chunk, Done, Encoding, Usage
from headrace.workers.channel import EncodeRow
from headrace.workers.courier.encoder_intake import EncoderIntake
from headrace.workers.courier.encoder_row import EncoderRow
from headrace.workers.courier.outbox import Outbox

VECTOR = array("f", [0.5, 0.25]).tobytes()


def start(task: Task = "embed", encoding: Encoding = "mp", revision: str = "r1", **params: Any) -> EncoderRow:
    job = EncoderJob(task, (2, 3), (2, 3), pack_ids([[1, 2], [3, 4, 5]]), EncoderParams(**params), revision, "key")
    return begin(job.encode(), encoding)


def begin(job: bytes, encoding: Encoding = "mp") -> EncoderRow:
    intake = EncoderIntake(encoder_tokenizer(8, labels=("no", "yes")), "w", "r1")
    begun = asyncio.run(intake.start(ClaimedRow("a", 2, 0, 0, encoding, job, 0, "r")))
    assert isinstance(begun.row, EncoderRow)
    assert begun.add in (None, EncodeRow(begun.row.number, job))
    return begun.row


def sent(row: EncoderRow, now_s: float = 0.0) -> EmitRow:
    emit = row.next_emit(now_s, renew_after_s=100.0)
    assert emit is not None
    return emit


def result(row: EncoderRow) -> dict[str, Any]:
    done = Chunk.decode(sent(row).chunk).done
    assert done is not None
    assert (done.reason, done.usage) == ("stop", Usage(5, 0))
    return dict(done.result or {})


def test_an_answer_is_the_last_chunk_and_has_no_tokens() -> None:
    row = start()
    assert row.cost_tokens == 5
    assert row.next_emit(0.0, renew_after_s=100.0) is None
    row.answer(msgpack.packb([VECTOR, VECTOR]))
    emit = sent(row)
    assert (emit.prev, emit.next, emit.entry, emit.verb, emit.reply_to) == ("w:2:0", "w:2:0", "0-2", "stop", "r")
    expected = Chunk(0, 0, (), "", Done("stop", Usage(5, 0), result={"embeddings": [VECTOR, VECTOR]}))
    assert Chunk.decode(emit.chunk) == expected
    assert row.urgent
    assert row.acknowledge(emit), "the row has left"
    whole = row.whole()
    assert whole is not None
    assert whole.encode("mp") == emit.chunk


def test_a_row_renews_its_lease_until_its_answer_comes() -> None:
    row = start()
    renewal = sent(row, now_s=101.0)
    assert (renewal.verb, row.acknowledge(renewal), row.computing) == ("renew", False, True)
    assert not row.ripe


def test_each_task_is_answered_in_its_own_form() -> None:
    row = start(encoding="json")
    row.answer(msgpack.packb([VECTOR, VECTOR]))
    assert result(row) == {"embeddings": [[0.5, 0.25], [0.5, 0.25]]}
    row = start("classify", top=1)
    row.answer(msgpack.packb([[0.25, 0.75], [1.0, 0.0]]))
    assert result(row) == {"labels": [[{"label": "yes", "score": 0.75}], [{"label": "no", "score": 1.0}]]}
    row = start("rerank", top=2)
    row.answer(msgpack.packb([0.1, 0.7, 0.3]))
    assert result(row) == {"documents": [{"index": 1, "score": 0.7}, {"index": 2, "score": 0.3}]}
    row = start("fill")
    row.answer(msgpack.packb([[(1, (4, 5), (0.5, 0.25))], []]))
    candidates = [{"id": 4, "text": "one", "score": 0.5}, {"id": 5, "text": "two", "score": 0.25}]
    assert result(row) == {"masks": [[{"position": 1, "candidates": candidates}], []]}


def test_an_answer_that_cannot_be_read_ends_the_row_with_an_error() -> None:
    for found in (b"", b"\xc1", msgpack.packb(5), msgpack.packb([[0.5]])):
        row = start("classify")
        row.answer(found)
        done = Chunk.decode(sent(row).chunk).done
        assert done is not None
        assert done.error is not None
        assert (done.reason, done.error.code, row.whole()) == ("error", "worker", None)


def test_a_row_that_ended_before_its_answer_came_is_not_kept() -> None:
    row = start()
    row.end("expired")
    row.answer(msgpack.packb([VECTOR, VECTOR]))
    assert (sent(row).verb, row.whole()) == ("expired", None)


def test_a_row_is_handed_back_without_a_chunk() -> None:
    row = start()
    row.hand_back("lost")
    emit = sent(row)
    assert (emit.verb, emit.chunk, row.acknowledge(emit), row.whole()) == ("lost", b"", True, None)


def test_a_job_that_is_not_this_models_is_not_begun() -> None:
    for row in (start(revision="r0"), begin(b"nonsense")):
        done = Chunk.decode(sent(row).chunk).done
        assert done is not None
        assert done.error is not None
        assert done.error.code == "worker"


def test_large_answers_leave_in_several_calls_and_none_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.workers.courier.outbox._MAX_FLUSH_BYTES", 1_000)
    outbox, intake = Outbox(renew_after_s=100.0), EncoderIntake(encoder_tokenizer(8), "w", "r1")
    for number in range(5):
        job = EncoderJob("embed", (1,), (1,), pack_ids([[1]]), EncoderParams(), "r1").encode()
        begun = asyncio.run(intake.start(ClaimedRow(f"r{number}", 1, 0, 0, "mp", job, 0, "")))
        outbox.add(begun.row)
        assert isinstance(begun.row, EncoderRow)
        begun.row.answer(msgpack.packb([b"x" * 600]))
    calls: list[list[str]] = []
    while flush := outbox.next_flush(0.0):
        calls.append([emit.request_id for _, emit in flush])
        outbox.settle(flush, Emitted(0, frozenset()))
    assert calls == [["r0", "r1"], ["r2", "r3"], ["r4"]]
