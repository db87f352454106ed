"""What each token id adds to a text, read once from a tokenizer's decoder.

Two families of decoders cover the models served here: byte-level BPE, where every piece is bytes (GPT-2, Llama 3, Qwen,
SmolLM), and SentencePiece, where pieces are text and a character without a piece is spelt in byte pieces (Llama 2,
Mistral, Gemma). Any other decoder is refused by name rather than decoded nearly right.
"""

import json
import re
from dataclasses import dataclass

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from headrace.errors import ModelError

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class BytePieces:
    """Byte-level BPE: the text is the pieces' bytes, joined and read as UTF-8.

    Attributes:
        table: bytes of each id below the vocabulary's size; empty for special tokens and ids without a token.
    """

    table: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class TextPieces:
    """SentencePiece: each id is text, or one byte of a character.

    Attributes:
        table: of each id below the vocabulary's size, its text, or its byte (0 to 255).
        strips_first_space: one space at the very beginning of a text is dropped.
    """

    table: tuple[str | int, ...]
    strips_first_space: bool


Pieces = BytePieces | TextPieces


def read_pieces(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> Pieces:
    """Read a tokenizer's vocabulary and decoder.

    Args:
        tokenizer: the tokenizer.
        vocab_size: number of ids the model knows; ids that the tokenizer does not know add nothing.

    Raises:
        ModelError: the decoder is of neither family.
    """
    texts = _texts(tokenizer, vocab_size)
    decoder = json.loads(tokenizer.to_str())["decoder"]
    match _flatten(decoder):
        case [{"type": "ByteLevel"}]:
            byte_of = _byte_of_character()
            return BytePieces(tuple(_to_bytes(text, byte_of) for text in texts))
        case [
            {"type": "Replace", "pattern": {"String": str(mark)}, "content": str(space)},
            {"type": "ByteFallback"},
            *rest,
        ]:
            if _kinds(rest) in (["Fuse"], ["Fuse", "Strip"]) and all(map(_is_first_space, rest[1:])):
                table = tuple(_to_text_or_byte(text.replace(mark, space)) for text in texts)
                return TextPieces(table, strips_first_space=len(rest) > 1)
    raise ModelError(f"the tokenizer's decoder is not supported: {', '.join(_kinds(_flatten(decoder))) or 'none'}")


def _texts(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> list[str]:
    special = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    texts = [""] * max(vocab_size, tokenizer.get_vocab_size(with_added_tokens=True))
    for text, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if index not in special and index < len(texts):
            texts[index] = text
    return texts


def _flatten(decoder: dict[str, object] | None) -> list[dict[str, object]]:
    if decoder is None:
        return []
    inner = decoder.get("decoders")
    return inner if isinstance(inner, list) else [decoder]


def _kinds(decoders: list[dict[str, object]]) -> list[str]:
    return [str(decoder.get("type")) for decoder in decoders]


def _is_first_space(decoder: dict[str, object]) -> bool:
    return (decoder.get("content"), decoder.get("start"), decoder.get("stop")) == (" ", 1, 0)


def _byte_of_character() -> dict[str, int]:
    """Invert byte-level BPE's alphabet, in which each byte is a printable character.

    Bytes that Latin-1 prints stand for themselves, the others for the characters from U+0100 on, in order.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    shifted = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(shifted)}
    if set(alphabet) != set(ByteLevel.alphabet()):
        raise ModelError("this version of the tokenizers library spells bytes in another alphabet")
    return alphabet


def _to_bytes(text: str, byte_of: dict[str, int]) -> bytes:
    # An added token may hold characters outside the alphabet; the whole token is then plain text.
    try:
        return bytes([byte_of[character] for character in text])
    except KeyError:
        return text.encode()


def _to_text_or_byte(text: str) -> str | int:
    byte = _BYTE_PIECE.fullmatch(text)
    return int(byte[1], 16) if byte else text
