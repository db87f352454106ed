"""The tokenizer of a real model (byte-level BPE), and a small one of the other family (SentencePiece)."""

import json
from pathlib import Path

import pytest
import tokenizers
from rich.console import Console
from tokenizers import AddedToken, decoders, models, normalizers

from headrace.workers.model_store.store import ModelFolder, default_cache_dir, pull
from headrace.workers.text.tokenizer import Tokenizer

#: Texts of the small vocabulary, after its special tokens; then follow its 256 byte pieces.
SMALL_TEXTS = ("▁", "▁the", "▁cat", "s", "a", "é", "▁▁", "\n")


@pytest.fixture(scope="session")
def smollm2() -> ModelFolder:
    """SmolLM2-135M-Instruct, pulled into the user's cache once; without it the tests fail, they are not skipped."""
    return pull("smollm2-135m", default_cache_dir(), Console(stderr=True))


@pytest.fixture(scope="session")
def tokenizer(smollm2: ModelFolder) -> Tokenizer:
    return Tokenizer.from_folder(smollm2.path)


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer in the manner of Llama 2: spaces as ``▁``, unknown characters in bytes."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    texts = ["<unk>", "<s>", "</s>", *SMALL_TEXTS, *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE(
        vocab={text: index for index, text in enumerate(texts)}, merges=[], byte_fallback=True, unk_token="<unk>"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts[:3]])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"vocab_size": len(texts) + 5, "max_position_embeddings": 64, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(sentencepiece_folder)
