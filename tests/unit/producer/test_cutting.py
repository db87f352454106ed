"""The cutter against a model: a result is a list of tokens and a text that grows with them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import DecodeError
from headrace.producer.cutting import Cutter, without_end
from headrace.wire import Chunk, Done, Usage

DONE = Done("length", Usage(3, 0))


@st.composite
def results(draw: st.DrawFn) -> tuple[tuple[int, ...], list[str]]:
    """Token ids, and the text that each of them adds: often none, sometimes several characters, any script."""
    ids = draw(st.lists(st.integers(0, 9), min_size=1, max_size=20))
    texts = [draw(st.sampled_from(["", "", "a", "é", "𝄞x", "word "])) for _ in ids]
    return tuple(ids), texts


def chunk_of(ids: tuple[int, ...], texts: list[str], first: int, end: int) -> Chunk:
    done = DONE if end == len(ids) else None
    return Chunk(first, len("".join(texts[:first])), ids[first:end], "".join(texts[first:end]), done)


def cut_anew(draw: st.DrawFn, ids: tuple[int, ...], texts: list[str], first: int) -> list[Chunk]:
    """The rest of a result behind a token, cut at random."""
    bounds = draw(st.sets(st.integers(first + 1, len(ids)), max_size=8)) | {len(ids)}
    edges = [first, *sorted(bounds)]
    return [chunk_of(ids, texts, a, b) for a, b in itertools.pairwise(edges)]


@given(results(), st.data())
def test_a_history_that_is_cut_anew_gives_each_token_and_character_once(
    result: tuple[tuple[int, ...], list[str]], data: st.DataObject
) -> None:
    ids, texts = result
    cutter, got_text, ends = Cutter(), "", 0
    got_ids: list[int] = []
    num_rollbacks = data.draw(st.integers(0, 3))
    for life in range(num_rollbacks + 1):
        # Each life of the broker remembers some prefix of what the reader holds, and is read from there or from 0.
        first = data.draw(st.integers(0, cutter.num_tokens)) if cutter.num_tokens < len(ids) else 0
        chunks = data.draw(st.composite(lambda draw, f=first: cut_anew(draw, ids, texts, f))())
        seen = len(chunks) if life == num_rollbacks else data.draw(st.integers(0, len(chunks) - 1))
        for chunk in chunks[:seen]:
            piece = cutter.cut(chunk)
            if piece is not None:
                assert piece.i == len(got_ids)
                assert piece.o == len(got_text)
                got_ids += piece.ids
                got_text += piece.text
                ends += piece.done is not None
    assert tuple(got_ids) == ids
    assert got_text == "".join(texts)
    assert ends == 1


@given(results(), st.data())
def test_a_reader_that_holds_tokens_and_characters_gets_exactly_the_rest(
    result: tuple[tuple[int, ...], list[str]], data: st.DataObject
) -> None:
    ids, texts = result
    held = data.draw(st.integers(0, len(ids)))
    cutter = Cutter(held, len("".join(texts[:held])))
    chunks = data.draw(st.composite(lambda draw: cut_anew(draw, ids, texts, 0))())
    pieces = [piece for chunk in chunks if (piece := cutter.cut(chunk))]
    assert tuple(token for piece in pieces for token in piece.ids) == ids[held:]
    assert "".join(piece.text for piece in pieces) == "".join(texts[held:])
    assert pieces[-1].done == DONE


@given(results(), st.data())
def test_a_reader_that_only_counts_tokens_gets_the_rest_from_a_chunks_edge_on_and_an_error_inside_one(
    result: tuple[tuple[int, ...], list[str]], data: st.DataObject
) -> None:
    ids, texts = result
    held = data.draw(st.integers(0, len(ids)))
    chunks = data.draw(st.composite(lambda draw: cut_anew(draw, ids, texts, 0))())
    cutter = Cutter(held)
    behind = [chunk for chunk in chunks if chunk.num_tokens_after > held - 1]
    if held in {0, *(chunk.num_tokens_after for chunk in chunks)}:
        pieces = [piece for chunk in behind if (piece := cutter.cut(chunk))]
        assert tuple(token for piece in pieces for token in piece.ids) == ids[held:]
        assert "".join(piece.text for piece in pieces) == "".join(texts[held:])
    else:
        with pytest.raises(DecodeError, match=f"token {held} lies inside a chunk"):
            [cutter.cut(chunk) for chunk in behind]


@given(results(), st.data())
def test_a_chunk_that_is_left_out_is_an_error_and_never_silent(
    result: tuple[tuple[int, ...], list[str]], data: st.DataObject
) -> None:
    ids, texts = result
    chunks = data.draw(st.composite(lambda draw: cut_anew(draw, ids, texts, 0))())
    missing = data.draw(st.integers(0, len(chunks) - 1))
    cutter = Cutter()
    for chunk in chunks[:missing]:
        cutter.cut(chunk)
    for chunk in chunks[missing + 1 :][:1]:
        with pytest.raises(DecodeError, match="gap"):
            cutter.cut(chunk)


def test_a_result_that_is_shorter_than_what_the_reader_said_it_held_is_told_as_that() -> None:
    with pytest.raises(DecodeError, match="the result has only 2 tokens, and 3 are said to be held"):
        Cutter(3).cut(Chunk(0, 0, (1, 2), "ab", DONE))


def test_a_gap_in_the_text_alone_is_an_error() -> None:
    cutter = Cutter()
    cutter.cut(Chunk(0, 0, (1,), "a"))
    with pytest.raises(DecodeError, match="character 1 is missing, the next is 3"):
        cutter.cut(Chunk(1, 3, (2,), "d"))


def test_a_result_that_was_computed_again_and_differs_is_an_error() -> None:
    cutter = Cutter()
    cutter.cut(Chunk(0, 0, (1, 2), "ab"))
    with pytest.raises(DecodeError, match="token 1 was 2 and is 9 now"):
        cutter.cut(Chunk(0, 0, (1, 9, 3), "axc"))


def test_a_result_that_ended_in_front_of_the_reader_is_an_error() -> None:
    cutter = Cutter()
    cutter.cut(Chunk(0, 0, (1, 2, 3), "abc"))
    with pytest.raises(DecodeError, match="ended behind token 2, and 3 are held"):
        cutter.cut(Chunk(0, 0, (1, 2), "ab", Done("stop", Usage(1, 2))))


def test_a_cancellation_in_front_of_the_reader_is_an_end_without_tokens() -> None:
    cutter = Cutter(7)
    piece = cutter.cut(Chunk(4, 9, (), "", Done("cancelled", Usage(1, 4))))
    assert piece is not None
    assert (piece.ids, piece.text) == ((), "")
    assert without_end(piece) is None


def test_text_that_an_end_without_tokens_lets_go_is_delivered() -> None:
    cutter = Cutter(2)
    assert cutter.cut(Chunk(1, 1, (8,), "b")) is None
    piece = cutter.cut(Chunk(2, 2, (), "<", Done("stop", Usage(1, 2))))
    assert piece is not None
    assert (piece.i, piece.o, piece.text) == (2, 2, "<")


def test_a_reader_cannot_hold_less_than_nothing() -> None:
    with pytest.raises(ValueError, match="-1 tokens"):
        Cutter(-1)
