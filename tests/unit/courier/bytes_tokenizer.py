"""A tokenizer whose token ids are bytes, so that a test can split characters over tokens."""

import tokenizers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from headrace.workers.text.folder_files import ModelFacts
from headrace.workers.text.tokenizer import Tokenizer


def byte_tokenizer() -> Tokenizer:
    """Make one of 256 ids: id ``b`` is the byte ``b``."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    model = tokenizers.Tokenizer(BPE({letter: byte for byte, letter in letters.items()}, []))
    model.pre_tokenizer = ByteLevel(add_prefix_space=False)
    model.decoder = ByteLevelDecoder()
    return Tokenizer(model, ModelFacts(256, 4096, frozenset({0}), {}, None))
