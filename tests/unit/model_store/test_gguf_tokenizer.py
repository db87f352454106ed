import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.unit.model_store.tiny_gguf import GgufRecipe
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from headrace.workers.model_store.gguf_convert import convert_gguf
from headrace.workers.model_store.store import ModelFolder

Write = Callable[[GgufRecipe], Path]
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces   and\ttabs\t\t",
    "line\nline\n\nline\r\n\r\n  \n",
    "12345 3.14159 1,000,000 0x1F 2024-12-31 ٣٤٥ ½ Ⅷ",
    "It's we'll I'd THEY'RE don't",
    "naïve café Zürich Ångström ﬁ",
    "日本語のテキストと中文文本 한국어",
    "🎉 👩‍👩‍👧 🇩🇪 ☃️",
    "def f(x: int) -> int:\n    return x**2  # square\n\n\nif __name__ == '__main__':\n\tprint(f(10))",
    "<html><body class='x'>&nbsp;</body></html> {\"a\": [1, 2.5e-3, null]}",
    "\u200b\u00a0\ufeff\u0301e\u0301",
    "שלום עולם مرحبا בדיקה",
]


class ReferenceBpe:
    """Byte-level BPE as its definition has it: cut, spell in bytes, merge the best pair until none is left."""

    def __init__(self, tokenizer_json: Path) -> None:
        model = json.loads(tokenizer_json.read_text())["model"]
        self.ids: dict[str, int] = model["vocab"]
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}

    def encode(self, text: str) -> list[int]:
        # Digits stand alone, then GPT-2's words within what lies between them.
        parts = [part for part in regex.split(r"(\p{N})", text) if part]
        words = [word for part in parts for word in regex.findall(GPT2_WORDS, part)]
        return [self.ids[piece] for word in words for piece in self.merge(word) if piece in self.ids]

    def merge(self, word: str) -> list[str]:
        alphabet = byte_alphabet()
        pieces = [alphabet[byte] for byte in word.encode()]
        # A byte that has no token of its own is left out before merging.
        pieces = [piece for piece in pieces if piece in self.ids]
        while True:
            pairs = [pair for pair in pairwise(pieces) if pair in self.ranks]
            if not pairs:
                return pieces
            best = min(pairs, key=self.ranks.__getitem__)
            merged: list[str] = []
            for piece in pieces:
                if merged and (merged[-1], piece) == best:
                    merged[-1] += piece
                else:
                    merged.append(piece)
            pieces = merged


@cache
def byte_alphabet() -> list[str]:
    """Ask the library for each byte's character, through characters whose UTF-8 has that byte."""
    spelt: dict[int, str] = {}
    cut = ByteLevel(add_prefix_space=False, use_regex=False)
    for code in [*range(0x800), *range(0x800, 0x10000, 0x40), *range(0x10000, 0x110000, 0x1000)]:
        if 0xD800 <= code < 0xE000:
            continue
        spelling = "".join(piece for piece, _ in cut.pre_tokenize_str(chr(code)))
        spelt |= dict(zip(chr(code).encode(), spelling, strict=True))
    return [spelt.get(byte, "") for byte in range(256)]


@pytest.fixture(scope="module")
def tokenizer(smollm2: ModelFolder) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2.path / "tokenizer.json"))


@pytest.fixture(scope="module")
def reference(smollm2: ModelFolder) -> ReferenceBpe:
    return ReferenceBpe(smollm2.path / "tokenizer.json")


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_definition_and_decode_to_the_text(
    tokenizer: Tokenizer, reference: ReferenceBpe, text: str
) -> None:
    ids = tokenizer.encode(text).ids
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids) == text


@settings(max_examples=300)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_has_the_ids_of_the_definition(tokenizer: Tokenizer, reference: ReferenceBpe, text: str) -> None:
    assume("<" not in text)  # special tokens are another test's affair
    assert tokenizer.encode(text, add_special_tokens=False).ids == reference.encode(text)


def test_ids_known_from_the_published_tokenizer(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("Hello world 123").ids == [19556, 905, 216, 33, 34, 35]


def test_special_tokens_in_a_text_are_parsed_and_are_not_decoded(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n").ids
    assert ids[0] == 1
    assert ids[-2] == 2
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nhi\n"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize(
    ("pre", "text", "cut"),
    [
        ("smollm", "ab 123's", ["ab", "Ġ", "1", "2", "3", "'s"]),
        ("gpt-2", "ab 123's", ["ab", "Ġ123", "'s"]),
        ("default", "ab 123's", ["ab", "Ġ123", "'s"]),
        ("llama-bpe", "ab 1234'S(x)\n", ["ab", "Ġ", "123", "4", "'S", "(x", ")Ċ"]),
        ("qwen2", "ab 12'S(x)\n", ["ab", "Ġ", "1", "2", "'S", "(x", ")Ċ"]),
        ("tekken", "abCD XYz 12'S(x)/\n", ["ab", "CD", "ĠXYz", "Ġ", "1", "2", "'S", "(x", ")/Ċ"]),
    ],
)
def test_words_are_cut_as_the_named_rule_does(
    written: Write, recipe: GgufRecipe, tmp_path: Path, pre: str, text: str, cut: list[str]
) -> None:
    recipe.metadata["tokenizer.ggml.pre"] = pre
    convert_gguf(written(recipe), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == cut


def test_a_text_begins_and_ends_as_the_file_asks(written: Write, recipe: GgufRecipe, tmp_path: Path) -> None:
    recipe.metadata |= {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    convert_gguf(written(recipe), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode(" abc").tokens == ["<|im_start|>", "Ġabc", "<|im_end|>"]
    assert tokenizer.encode(" abc", add_special_tokens=False).tokens == ["Ġabc"]


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken"])
def test_some_files_begin_texts_even_where_they_do_not_say_so(
    written: Write, recipe: GgufRecipe, tmp_path: Path, pre: str
) -> None:
    recipe.metadata["tokenizer.ggml.pre"] = pre
    convert_gguf(written(recipe), tmp_path)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("b").tokens == ["<|im_start|>", "b"]


def test_user_defined_tokens_are_found_in_text_and_are_decoded(
    written: Write, recipe: GgufRecipe, tmp_path: Path
) -> None:
    convert_gguf(written(recipe), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode("b<tool>b").ids
    assert tokenizer.id_to_token(ids[1]) == "<tool>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "b<tool>b"
