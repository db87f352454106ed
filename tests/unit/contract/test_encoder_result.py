"""What an encoder answers comes back as it was, in both encodings and every form; and so do jobs."""

from array import array
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.encoder_job import EncoderJob, EncoderParams, pack_ids
from headrace.encoder_result import (
    Answer,
    Candidate,
    Classification,
    Embeddings,
    Filling,
    Label,
    Mask,
    Ranked,
    Ranking,
    read_answer,
)
from headrace.errors import DecodeError
from headrace.wire import Chunk, Done, Encoding, Usage

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.lists(
    st.lists(floats, min_size=3, max_size=3).map(lambda v: array("f", v).tobytes()), min_size=1, max_size=3
)
scores = st.floats(0, 1)
encodings: st.SearchStrategy[Encoding] = st.sampled_from(["json", "mp"])
words = st.text(max_size=4)
candidates = st.lists(st.builds(Candidate, st.integers(0, 99), words, scores), max_size=2).map(tuple)


def rows(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(of, max_size=3).map(tuple)


answers: st.SearchStrategy[Answer] = st.one_of(
    st.builds(Classification, rows(rows(st.builds(Label, words, scores)))),
    st.builds(Ranking, rows(st.builds(Ranked, st.integers(0, 99), scores))),
    st.builds(Filling, rows(rows(st.builds(Mask, st.integers(0, 99), candidates)))),
)


def through_a_chunk(result: dict[str, object], encoding: Encoding) -> Answer:
    chunk = Chunk(0, 0, (), "", Done("stop", Usage(3, 0), result=result))
    done = Chunk.decode(chunk.encode(encoding)).done
    assert done is not None
    assert done.result is not None
    return read_answer(done.result)


@given(vectors, encodings, st.sampled_from([None, True, False]))
def test_vectors_come_back_to_the_last_bit_in_every_form(
    packed: list[bytes], encoding: Encoding, as_lists: bool | None
) -> None:
    given_ = Embeddings(tuple(packed))
    found = through_a_chunk(given_.fields(encoding, as_lists), encoding)
    assert isinstance(found, Embeddings)
    assert found.vectors == given_.vectors
    assert found.numpy().tolist() == [vector.tolist() for vector in given_.vectors]


def test_vectors_are_bytes_in_messagepack_and_lists_in_json_unless_asked_for() -> None:
    vectors = Embeddings((array("f", [1.0, 0.1]).tobytes(),))
    assert vectors.fields("mp") == vectors.fields("mp", floats=False) == {"embeddings": vectors.packed}
    assert vectors.fields("json") == vectors.fields("mp", floats=True) == {"embeddings": [[1.0, 0.100000001]]}
    assert vectors.fields("json", floats=False) == {"embeddings": ["AACAP83MzD0="]}


def test_a_chunk_that_was_published_in_messagepack_can_be_told_in_json() -> None:
    vectors = Embeddings((array("f", [1.0, 0.1]).tobytes(),))
    chunk = Chunk(0, 0, (), "", Done("stop", Usage(3, 0), result=vectors.fields("mp")))
    done = Chunk.decode(Chunk.decode(chunk.encode("mp")).encode("json")).done
    assert done is not None
    assert done.result == {"embeddings": ["AACAP83MzD0="]}
    assert read_answer(done.result) == vectors


@given(answers, encodings)
def test_other_answers_come_back_as_they_were(answer: Answer, encoding: Encoding) -> None:
    assert not isinstance(answer, Embeddings)
    assert through_a_chunk(answer.fields(), encoding) == answer


@pytest.mark.parametrize("fields", [{}, {"x": []}, {"embeddings": 5}, {"labels": [[1]]}, {"labels": [], "masks": []}])
def test_what_is_no_answer_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        read_answer(fields)


texts = st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), min_size=1, max_size=6)


@given(texts, st.sampled_from(["", "key"]))
def test_a_job_comes_back_as_it_was(ids: list[list[int]], key: str) -> None:
    lengths = tuple(len(text) for text in ids)
    params = EncoderParams("mean", True, 3, top=2, pairs=True, floats=False)
    job = EncoderJob("embed", lengths, lengths, pack_ids(ids), params, "r1", key)
    found = EncoderJob.decode(job.encode())
    assert found == job
    assert [list(text) for text in found.texts()] == ids
    assert found.num_tokens == sum(lengths)


def test_a_job_whose_lengths_are_not_its_tokens_is_refused() -> None:
    job = EncoderJob("embed", (2,), (2,), pack_ids([[1, 2]]), EncoderParams(), "r1")
    for name, value in (("lengths", [1]), ("firsts", []), ("params", [1] * 9), ("token_ids", b"\x01")):
        with pytest.raises(DecodeError):
            EncoderJob.decode(msgpack.packb(msgpack.unpackb(job.encode()) | {name: value}))
    for data in (b"", b"\x80", msgpack.packb([1])):
        with pytest.raises(DecodeError):
            EncoderJob.decode(data)
