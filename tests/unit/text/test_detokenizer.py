import random
import time
from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models

from headrace.workers.text.detokenizer import Delta, Detokenizer
from headrace.workers.text.pieces import BytePieces, read_pieces
from headrace.workers.text.tokenizer import Tokenizer

WORDS = ["stop", "\n\n", "User:", "é", "🎉", "日本語", " the", "<|im_end|>", "abab", "aab", " 12", "\ufffd", "👩‍👩‍👧"]


def deltas_of(tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[Delta], str]:
    detokenizer = Detokenizer(tokenizer, (), stop)
    deltas = [detokenizer.push(token_id) for token_id in ids]
    return deltas, detokenizer.flush()


def text_of(tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[str, bool]:
    """Detokenise until the first stop, as a worker does."""
    detokenizer = Detokenizer(tokenizer, (), stop)
    text = ""
    for token_id in ids:
        delta = detokenizer.push(token_id)
        text += delta.text
        if delta.stopped:
            return text, True
    return text + detokenizer.flush(), False


@pytest.fixture(scope="module")
def partial(tokenizer: Tokenizer) -> list[int]:
    """The ids whose bytes are no text of their own."""
    table = tokenizer.pieces.table
    found = [index for index, piece in enumerate(table) if isinstance(piece, bytes) and not _is_text(piece)]
    assert len(found) > 100
    return found


@settings(max_examples=400)
@given(data=st.data())
def test_random_ids_give_the_text_that_the_tokenizer_decodes_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    deltas, rest = deltas_of(tokenizer, ids)
    assert "".join(delta.text for delta in deltas) + rest == tokenizer.decode(ids)


@settings(max_examples=400)
@given(data=st.data())
def test_broken_characters_are_replaced_as_the_tokenizer_replaces_them(
    tokenizer: Tokenizer, partial: list[int], data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.sampled_from(partial) | st.integers(0, 300), max_size=30))
    deltas, rest = deltas_of(tokenizer, ids)
    assert "".join(delta.text for delta in deltas) + rest == tokenizer.decode(ids)


@settings(max_examples=400)
@given(data=st.data())
def test_byte_pieces_give_the_text_that_the_tokenizer_decodes_at_once(
    sentencepiece: Tokenizer, data: st.DataObject
) -> None:
    emoji = sentencepiece.encode_batch(["🎉"], add_special_tokens=False)[0]
    one = st.integers(0, sentencepiece.vocab_size - 1).map(lambda index: (index,))
    ids = [index for part in data.draw(st.lists(one | st.just(emoji), max_size=20)) for index in part]
    deltas, rest = deltas_of(sentencepiece, ids)
    assert "".join(delta.text for delta in deltas) + rest == sentencepiece.decode(ids)


def test_no_delta_holds_half_a_character(tokenizer: Tokenizer) -> None:
    text = "caf\u00e9 🎉 👩‍👩‍👧 日本語 ꙮ"
    ids = tokenizer.encode_batch([text], add_special_tokens=False)[0]
    deltas, rest = deltas_of(tokenizer, ids)
    assert len(ids) > len(text), "the text is meant to hold characters of several tokens"
    assert not any("\ufffd" in delta.text for delta in deltas)
    assert ("".join(delta.text for delta in deltas), rest) == (text, "")


def test_half_a_character_at_the_end_is_shown_by_the_flush(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_batch(["x🎉"], add_special_tokens=False)[0]
    deltas, rest = deltas_of(tokenizer, ids[:-1])
    assert "".join(delta.text for delta in deltas) == "x"
    assert rest == "\ufffd"


def test_special_tokens_add_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_batch(["a<|im_end|>b<|endoftext|>"], add_special_tokens=False)[0]
    assert text_of(tokenizer, ids) == ("ab", False)


def test_added_tokens_outside_the_byte_alphabet_are_plain_text() -> None:
    inner = tokenizers.Tokenizer(models.BPE(vocab={"Ġ": 0, "a": 1}, merges=[]))
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken("<tool café>", special=False), AddedToken("Ġb", special=False)])
    pieces = read_pieces(inner, vocab_size=6)
    assert pieces == BytePieces((b" ", b"a", "<tool café>".encode(), b" b", b"", b""))
    assert b"".join(pieces.table[:4]).decode() == inner.decode([0, 1, 2, 3])


def test_the_first_space_is_dropped_at_the_beginning_of_a_text_only(sentencepiece: Tokenizer) -> None:
    the, cat = 4, 5
    assert sentencepiece.decode([the, cat]) == "the cat"
    assert Detokenizer(sentencepiece, (1,), ()).push(cat).text == "cat"
    assert Detokenizer(sentencepiece, (1, the), ()).push(cat).text == " cat"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("Once upon a time", ["a ti"], "Once upon "),
        ("one\n\nUser: two", ["\n\nUser:"], "one"),
        ("aaab", ["aab"], "a"),
        ("abcabd", ["abd", "bca"], "a"),
        ("xabcde", ["abcde", "bcd"], "xa"),
        ("xabc", ["bc", "abc", "c"], "x"),
        ("stop", ["stop"], ""),
        ("xaabaaabaaacy", ["aabaaac"], "xaaba"),
        ("x🎉y", ["🎉"], "x"),
    ],
)
def test_the_text_ends_before_the_first_complete_stop_string(
    tokenizer: Tokenizer, text: str, stop: list[str], expected: str
) -> None:
    ids = tokenizer.encode_batch([text], add_special_tokens=False)[0]
    assert text_of(tokenizer, ids, stop) == (expected, True)


def test_what_may_become_a_stop_string_waits_until_it_cannot(tokenizer: Tokenizer) -> None:
    first, second, other = (tokenizer.encode_batch([t], add_special_tokens=False)[0] for t in ("\n", "User", "x"))
    detokenizer = Detokenizer(tokenizer, (), ["\nUser:"])
    assert detokenizer.push(first[0]) == Delta("", False)
    assert detokenizer.push(second[0]) == Delta("", False)
    assert detokenizer.push(other[0]) == Delta("\nUserx", False)
    assert detokenizer.push(first[0]) == Delta("", False)
    assert detokenizer.flush() == "\n"


def test_nothing_comes_after_a_stop(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_batch(["a stop b"], add_special_tokens=False)[0]
    deltas, rest = deltas_of(tokenizer, ids, ["stop"])
    assert deltas[1].stopped
    assert deltas[-1] == Delta("", True)
    assert ("".join(delta.text for delta in deltas), rest) == ("a ", "")


@settings(max_examples=400)
@given(
    words=st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=12),
    stop=st.lists(st.sampled_from(WORDS) | st.text("ab \n", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_stop_strings_are_found_as_a_search_of_the_whole_text_finds_them(
    tokenizer: Tokenizer, words: list[str], stop: list[str]
) -> None:
    ids = tokenizer.encode_batch(["".join(words)], add_special_tokens=False)[0]
    whole = tokenizer.decode(ids)
    ends = [(whole.find(string) + len(string), -len(string)) for string in stop if string in whole]
    if ends:
        end, negative_length = min(ends)
        assert text_of(tokenizer, ids, stop) == (whole[: end + negative_length], True)
    else:
        assert text_of(tokenizer, ids, stop) == (whole, False)


@settings(max_examples=200)
@given(data=st.data())
def test_replayed_ids_continue_with_the_same_deltas(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 400) | st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    stop = data.draw(st.lists(st.text("abc \n", min_size=1, max_size=3), max_size=2))
    lost_after = data.draw(st.integers(0, len(ids)))
    deltas, rest = deltas_of(tokenizer, ids, stop)
    survivor = Detokenizer(tokenizer, (), stop)
    assert [survivor.push(token_id) for token_id in ids[:lost_after]] == deltas[:lost_after]
    assert [survivor.push(token_id) for token_id in ids[lost_after:]] == deltas[lost_after:]
    assert survivor.flush() == rest


def test_an_empty_stop_string_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="empty"):
        Detokenizer(tokenizer, (), ["a", ""])


def test_a_token_costs_no_more_late_in_a_text_than_early(tokenizer: Tokenizer) -> None:
    """Holding a never-ending half-match or an endless run of invalid bytes must not make it quadratic."""
    stop = ["ab" * 500]
    ids = tokenizer.encode_batch(["ab" * 30 + "c"], add_special_tokens=False)[0] * 400
    ids += tuple(random.Random(1).choices(range(150, 260), k=20_000))
    detokenizer = Detokenizer(tokenizer, (), stop)
    begin_s = time.perf_counter()
    for token_id in ids:
        detokenizer.push(token_id)
    assert len(ids) / (time.perf_counter() - begin_s) > 20_000


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True
