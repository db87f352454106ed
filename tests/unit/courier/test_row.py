"""A row gathers tokens into chunks: one in flight, sent again unchanged, nothing lost and nothing twice."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.courier.bytes_tokenizer import byte_tokenizer

from headrace.job import Job, SamplingParams
from headrace.moves import ClaimedRow, EmitRow, Emitted
from headrace.wire import Chunk, TokenLogprobs
from headrace.workers.courier.outbox import Outbox
from headrace.workers.courier.row import Row
from headrace.workers.text.detokenizer import Detokenizer

TOKENIZER = byte_tokenizer()
PROMPT = (104, 105)


def make_row(
    number: int = 1, stop: tuple[str, ...] = (), num_tokens: int = 0, text: str = "", logprobs: int | None = None
) -> Row:
    params = SamplingParams(50, 0, 0.0, 0, 1.0, 0.0, 0, stop, (), False, logprobs=logprobs)
    claimed = ClaimedRow(f"r{number}", 3, num_tokens, len(text), "json", b"", 0, "")
    detokenizer = Detokenizer(TOKENIZER, PROMPT, stop)
    for byte in text.encode():
        detokenizer.push(byte)
    return Row(number, claimed, "w", (Job(PROMPT, params, "r"), detokenizer))


def push(row: Row, text: str) -> None:
    for byte in text.encode():
        row.push(byte)


def send(row: Row, now_s: float = 0.0) -> EmitRow:
    emit = row.next_emit(now_s, renew_after_s=100.0)
    assert emit is not None
    return emit


def test_the_first_chunk_begins_behind_what_was_published_before() -> None:
    row = make_row(num_tokens=3, text="abc")
    push(row, "de")
    emit = send(row)
    assert (emit.prev, emit.next, emit.entry, emit.verb) == ("w:3:3", "w:3:5", "5-0", "chunk")
    assert Chunk.decode(emit.chunk) == Chunk(3, 3, (100, 101), "de")


def test_a_chunk_in_flight_is_sent_again_unchanged_while_tokens_go_into_the_next() -> None:
    row = make_row()
    push(row, "a")
    first = send(row)
    push(row, "b")
    assert send(row) == first
    assert not row.acknowledge(first)
    assert Chunk.decode(send(row).chunk) == Chunk(1, 1, (98,), "b")


def test_the_last_chunk_carries_its_tokens_the_reason_and_the_usage() -> None:
    row = make_row()
    push(row, "ab")
    row.end("length")
    emit = send(row)
    chunk = Chunk.decode(emit.chunk)
    assert (emit.entry, emit.verb, chunk.text) == ("2-0", "length", "ab")
    assert chunk.done is not None
    assert (chunk.done.reason, chunk.done.usage.prompt_tokens, chunk.done.usage.completion_tokens) == ("length", 2, 2)
    assert row.acknowledge(emit), "the row has left"


def test_an_end_behind_a_chunk_in_flight_is_a_chunk_without_tokens() -> None:
    row = make_row()
    push(row, "a")
    first = send(row)
    row.end("expired")
    row.acknowledge(first)
    last = send(row)
    assert (last.entry, last.prev, last.next) == ("1-2", "w:3:1", "w:3:1")


def test_logprobs_go_out_a_token_each_and_their_sum_with_the_end() -> None:
    row = make_row(logprobs=1, stop=("cd",))
    told = [TokenLogprobs(-(0.1 + index), ((98, -0.1),)) for index in range(4)]
    row.push(97, told[0])
    first = send(row)
    assert Chunk.decode(first.chunk).logprobs == (told[0],)
    row.acknowledge(first)
    for byte, token in zip(b"bcd", told[1:], strict=True):
        row.push(byte, token)
    row.push(101, told[0])
    last = Chunk.decode(send(row).chunk)
    assert last.logprobs == tuple(told[1:])
    assert last.done is not None
    assert last.done.cumulative_logprob == sum(token.logprob for token in told)


def test_the_sum_of_logprobs_goes_on_where_the_last_worker_stopped() -> None:
    row = make_row(logprobs=0, num_tokens=2, text="ab")
    row.resume(Chunk(0, 0, (97, 98), "ab", logprobs=(TokenLogprobs(-0.1, ()), TokenLogprobs(-0.2, ()))))
    row.push(99, TokenLogprobs(-0.3, ()))
    row.end("length")
    done = Chunk.decode(send(row).chunk).done
    assert done is not None
    assert done.cumulative_logprob == -0.1 + -0.2 + -0.3


def test_a_row_that_did_not_ask_for_logprobs_has_none() -> None:
    row = make_row()
    push(row, "a")
    row.end("length")
    chunk = Chunk.decode(send(row).chunk)
    assert chunk.done is not None
    assert (chunk.logprobs, chunk.done.cumulative_logprob) == ((), None)


def test_a_stop_string_ends_the_row_and_is_not_part_of_the_text() -> None:
    row = make_row(stop=("END",))
    push(row, "xEN")
    assert not row.ended
    assert Chunk.decode(send(row).chunk).text == "x"
    push(row, "Dmore")
    assert row.ended
    row.acknowledge(send(row))
    last = Chunk.decode(send(row).chunk)
    assert (last.text, len(last.ids)) == ("", 1), "tokens behind the stop string are not the request's"
    assert last.done is not None
    assert last.done.reason == "stop"


def test_text_held_back_for_a_stop_string_goes_out_with_the_end() -> None:
    row = make_row(stop=("END",))
    push(row, "xEN")
    row.end("length")
    assert Chunk.decode(send(row).chunk).text == "xEN"


def test_half_a_character_waits_for_its_other_half() -> None:
    row = make_row()
    first, *rest = "é".encode()
    row.push(first)
    emit = send(row)
    assert Chunk.decode(emit.chunk).text == ""
    row.acknowledge(emit)
    for byte in rest:
        row.push(byte)
    assert Chunk.decode(send(row).chunk).text == "é"


def test_a_row_is_handed_back_only_behind_its_last_token() -> None:
    row = make_row()
    push(row, "a")
    row.hand_back("lost")
    first = send(row)
    assert first.verb == "chunk"
    assert not row.acknowledge(first)
    assert send(row).verb == "lost"
    assert row.acknowledge(send(row))


def test_a_silent_row_renews_its_lease_and_a_speaking_one_does_not_have_to() -> None:
    row = make_row()
    push(row, "a")
    row.acknowledge(send(row, now_s=10.0))
    assert row.next_emit(10.2, renew_after_s=0.3) is None
    renewal = row.next_emit(10.4, renew_after_s=0.3)
    assert renewal is not None
    assert (renewal.verb, renewal.prev, renewal.next, renewal.chunk) == ("renew", "w:3:1", "w:3:1", b"")


def test_a_row_that_could_not_be_read_only_ends() -> None:
    claimed = ClaimedRow("r", 1, 0, 0, "json", b"", 0, "")
    row = Row(1, claimed, "w")
    row.end("error")
    assert send(row).verb == "error"


def test_a_refused_row_leaves_the_outbox() -> None:
    outbox = Outbox(renew_after_s=100.0)
    outbox.add(make_row(1))
    outbox.add(make_row(2))
    for row in outbox.rows:
        assert isinstance(row, Row)
        push(row, "a")
    flush = outbox.next_flush(0.0)
    gone = outbox.settle(flush, Emitted(0, frozenset({"r1"})))
    assert [row.request_id for row in gone] == ["r1"]
    assert [row.request_id for row in outbox.rows] == ["r2"]


def test_a_second_claim_of_a_request_voids_the_first_even_with_a_flush_under_way() -> None:
    outbox = Outbox(renew_after_s=100.0)
    old = make_row(1)
    outbox.add(old)
    push(old, "a")
    flush = outbox.next_flush(0.0)
    new = make_row(1)
    new.number = 2
    assert outbox.add(new) is old
    assert outbox.settle(flush, Emitted(0, frozenset({"r1"}))) == []
    assert outbox.rows == (new,)


@given(st.text(alphabet="abé😀E N", max_size=30), st.lists(st.booleans(), max_size=60))
def test_chunks_are_contiguous_and_add_up_to_the_text(text: str, acknowledgements: list[bool]) -> None:
    row, chunks, answers = make_row(stop=("EN",)), list[Chunk](), iter(acknowledgements)

    def exchange() -> bool:
        emit = row.next_emit(0.0, renew_after_s=100.0)
        if emit is None or not next(answers, True):
            return False
        chunks.append(Chunk.decode(emit.chunk))
        return row.acknowledge(emit)

    left = False
    for byte in text.encode():
        row.push(byte)
        left = left or exchange()
    row.end("length")
    while not left:
        left = exchange()
    assert chunks[0].i == chunks[0].o == 0
    for before, after in pairwise(chunks):
        assert after.i == before.num_tokens_after
        assert after.o == before.o + len(before.text)
    assert "".join(chunk.text for chunk in chunks) == text.partition("EN")[0]
    assert [chunk.done is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def kept_row(num_tokens: int = 0, text: str = "") -> Row:
    params = SamplingParams(50, 0, 0.0, 0, 1.0, 0.0, 0, ("END",), (), False, logprobs=0)
    detokenizer = Detokenizer(TOKENIZER, PROMPT, ("END",))
    for byte in text.encode():
        detokenizer.push(byte)
    claimed = ClaimedRow("r", 3, num_tokens, len(text), "json", b"", 0, "")
    return Row(1, claimed, "w", (Job(PROMPT, params, "r", "key"), detokenizer))


@given(st.text("abé", min_size=1, max_size=12), st.lists(st.booleans(), min_size=24, max_size=24), st.integers(0, 5))
def test_what_is_kept_for_the_cache_is_all_that_was_published(text: str, flushes: list[bool], num_before: int) -> None:
    data = text.encode()
    before = data[: min(num_before, len(data) - 1)].decode(errors="ignore")
    row, chunks = kept_row(len(before.encode()), before), []
    if before:
        chunks.append(
            Chunk(0, 0, tuple(before.encode()), before, logprobs=(TokenLogprobs(-1.0, ()),) * len(before.encode()))
        )
        row.resume(chunks[0])
    for byte, flush in zip(data[len(before.encode()) :], flushes, strict=False):
        row.push(byte, TokenLogprobs(-1.0, ()))
        if flush:
            emit = send(row)
            chunks.append(Chunk.decode(emit.chunk))
            row.acknowledge(emit)
    assert row.whole() is None, "it has not ended"
    row.end("length")
    chunks.append(Chunk.decode(send(row).chunk))
    whole = row.whole()
    assert whole is not None
    assert (whole.i, whole.o, bytes(whole.ids), whole.text) == (0, 0, data, text)
    assert whole.done == chunks[-1].done
    assert len(whole.logprobs) == len(data)


def test_only_a_good_end_is_kept_and_only_where_it_may_be() -> None:
    for reason in ("error", "expired", "cancelled"):
        row = kept_row()
        push(row, "a")
        row.end(reason)
        send(row)
        assert row.whole() is None
    unnamed = make_row()
    push(unnamed, "a")
    unnamed.end("length")
    send(unnamed)
    assert (unnamed.cache_key, unnamed.whole()) == ("", None)
    stopped = kept_row()
    push(stopped, "abENDx")
    send(stopped)
    whole = stopped.whole()
    assert whole is not None
    assert (whole.text, bytes(whole.ids)) == ("ab", b"abEND")
