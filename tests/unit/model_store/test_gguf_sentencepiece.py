"""SentencePiece vocabularies of GGUF files, against the definition of SentencePiece's BPE."""

import random
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.model_store.tiny_gguf import HIDDEN, GgufRecipe
from tokenizers import Tokenizer as HuggingFaceTokenizer

from headrace.errors import ModelError
from headrace.workers.model_store.gguf_convert import convert_gguf
from headrace.workers.model_store.gguf_sentencepiece import build_sentencepiece, merges_by_score
from headrace.workers.model_store.token_type import TokenType
from headrace.workers.text.detokenizer import Detokenizer
from headrace.workers.text.pieces import TextPieces
from headrace.workers.text.tokenizer import Tokenizer

Write = Callable[[GgufRecipe], Path]
SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
#: In the order in which training made them, so that each one's parts are there before it.
PIECES = ("▁a", "ab", "▁ab", "▁▁", "▁▁▁▁", "abc", "bc", "aba", "ba", "▁abc", "é▁", "▁▁a", "bab", "caba")
LETTERS = ("▁", "a", "b", "c", "é")
TOKENS = (*SPECIAL, *BYTES, *PIECES, *LETTERS, "<tool>")
TYPES = (2, 3, 3, *(6,) * 256, *(1,) * (len(PIECES) + len(LETTERS)), 4)
SCORES = (*(0.0,) * 259, *(-float(index) for index in range(len(PIECES) + len(LETTERS))), -1000.0)


def joined_by_definition(text: str, scores: Mapping[str, float]) -> list[str]:
    """Join, again and again, the leftmost of the pairs whose whole has the best score."""
    pieces = list(text)
    while True:
        wholes = [left + right for left, right in pairwise(pieces)]
        known = [whole for whole in wholes if whole in scores]
        if not known:
            return pieces
        at = wholes.index(max(known, key=scores.__getitem__))
        pieces[at : at + 2] = [wholes[at]]


def spelt(pieces: list[str], known: Mapping[str, float]) -> list[str]:
    """Write what has no piece in bytes."""
    return [
        part
        for piece in pieces
        for part in ([piece] if piece in known else [f"<0x{byte:02X}>" for byte in piece.encode()])
    ]


@pytest.fixture
def sentencepiece(recipe: GgufRecipe) -> GgufRecipe:
    embedding = recipe.weights["model.embed_tokens.weight"]
    rows = random.Random(0).choices(range(len(embedding)), k=len(TOKENS))
    recipe.weights["model.embed_tokens.weight"] = embedding[rows]
    assert recipe.weights["model.embed_tokens.weight"].shape == (len(TOKENS), HIDDEN)
    recipe.metadata |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(TOKENS),
        "tokenizer.ggml.token_type": list(TYPES),
        "tokenizer.ggml.scores": list(SCORES),
        "tokenizer.ggml.unknown_token_id": 0,
    }
    recipe.without = ("tokenizer.ggml.merges",)
    return recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "converted"
    path.mkdir()
    return path


def test_texts_are_encoded_by_score_with_bytes_for_what_has_no_piece(
    written: Write, sentencepiece: GgufRecipe, folder: Path
) -> None:
    convert_gguf(written(sentencepiece), folder)
    tokenizer = HuggingFaceTokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("abc ab").tokens == ["<s>", "▁abc", "▁ab"]
    assert tokenizer.encode("a日", add_special_tokens=False).tokens == ["▁a", "<0xE6>", "<0x97>", "<0xA5>"]
    assert tokenizer.encode("a</s>a<tool>", add_special_tokens=False).tokens == ["▁a", "</s>", "▁a", "<tool>"]
    assert tokenizer.encode("", add_special_tokens=False).tokens == []


def test_texts_come_back_through_the_incremental_detokenizer(
    written: Write, sentencepiece: GgufRecipe, folder: Path
) -> None:
    convert_gguf(written(sentencepiece), folder)
    tokenizer = Tokenizer.from_folder(folder)
    assert isinstance(tokenizer.pieces, TextPieces)
    for text in ("abc  ab", " leading", "日本 é 🎉\n", "a<tool>b"):
        (ids,) = tokenizer.encode_batch([text], add_special_tokens=True)
        detokenizer = Detokenizer(tokenizer, (), ())
        assert "".join(detokenizer.push(token_id).text for token_id in ids) + detokenizer.flush() == tokenizer.decode(
            ids
        )
        assert tokenizer.decode(ids).replace("<tool> ", "<tool>") == text


def test_the_hidden_space_is_left_out_where_the_file_says_so(
    written: Write, sentencepiece: GgufRecipe, folder: Path
) -> None:
    sentencepiece.metadata |= {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    convert_gguf(written(sentencepiece), folder)
    tokenizer = Tokenizer.from_folder(folder)
    (ids,) = tokenizer.encode_batch([" abc"], add_special_tokens=True)
    assert [TOKENS[token_id] for token_id in ids] == ["▁abc"]
    assert tokenizer.decode(ids) == " abc"


@settings(max_examples=300)
@given(text=st.text(st.sampled_from("ab cé日"), max_size=24))
def test_any_text_is_joined_as_the_definition_does(text: str) -> None:
    types = tuple(map(TokenType, TYPES))
    tokenizer = build_sentencepiece(TOKENS, merges_by_score(TOKENS, types, SCORES), "<unk>", space_prefix=True)
    known = {token: score for token, score in zip(TOKENS, SCORES, strict=True) if token in PIECES + LETTERS}
    expected = joined_by_definition(("▁" + text.replace(" ", "▁")) if text else "", known)
    assert tokenizer.encode(text).tokens == spelt(expected, known)


@settings(max_examples=200)
@given(data=st.data())
def test_any_vocabulary_joins_as_the_definition_does(data: st.DataObject) -> None:
    """Vocabularies grown as training grows them: each new piece joins two that are there."""
    pieces = ["a", "b"]
    for _ in range(data.draw(st.integers(0, 8))):
        joined = data.draw(st.sampled_from(pieces)) + data.draw(st.sampled_from(pieces))
        if joined not in pieces:
            pieces.append(joined)
    tokens = (*BYTES, *pieces)
    types = (*(TokenType.BYTE,) * 256, *(TokenType.NORMAL,) * len(pieces))
    known = {piece: -float(index) for index, piece in enumerate(pieces)}
    scores = (*(0.0,) * 256, *known.values())
    tokenizer = build_sentencepiece(tokens, merges_by_score(tokens, types, scores), None, space_prefix=False)
    text = data.draw(st.text("ab", max_size=20))
    assert tokenizer.encode(text).tokens == joined_by_definition(text, known)


def test_a_tie_that_pairs_cannot_tell_is_refused_by_name(
    written: Write, sentencepiece: GgufRecipe, folder: Path
) -> None:
    sentencepiece.metadata["tokenizer.ggml.scores"] = [*SCORES[:259], -1.0, -1.0, *SCORES[261:]]
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.scores: '▁a' and 'ab' have the same"):
        convert_gguf(written(sentencepiece), folder)


def test_a_byte_without_a_token_is_refused_by_name(written: Write, sentencepiece: GgufRecipe, folder: Path) -> None:
    sentencepiece.metadata["tokenizer.ggml.tokens"] = [token.replace("<0x41>", "gone") for token in TOKENS]
    with pytest.raises(ModelError, match="<0x41>"):
        convert_gguf(written(sentencepiece), folder)
