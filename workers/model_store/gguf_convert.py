"""From a GGUF file to a folder in Hugging Face layout, in float32, without torch."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from headrace.workers.model_store.catalogue import CONVERTER_VERSION
from headrace.workers.model_store.gguf_config import hugging_face_config
from headrace.workers.model_store.gguf_file import GgufFile
from headrace.workers.model_store.gguf_shape import read_shape
from headrace.workers.model_store.gguf_tokenizer import build_tokenizer
from headrace.workers.model_store.gguf_vocabulary import Vocabulary, read_vocabulary
from headrace.workers.model_store.gguf_weights import weights_bytes, write_weights
from headrace.workers.model_store.staging import require_free_space


def convert_gguf(
    gguf: Path, folder: Path, on_progress: Callable[[int, int], None] = lambda done_bytes, total_bytes: None
) -> None:
    """Write config, weights and tokenizer of ``gguf`` into the existing, empty ``folder``.

    Args:
        gguf: a GGUF file of a known architecture, in any quantisation.
        folder: where config.json, generation_config.json, model.safetensors, tokenizer.json and
            tokenizer_config.json are written.
        on_progress: called with the bytes of weights written so far, and of all weights.

    Raises:
        ModelError: the file is damaged, does not fit on the disk, or uses what cannot be converted (by name).
    """
    file = GgufFile(gguf)
    shape = read_shape(file)
    vocabulary = read_vocabulary(file)
    tokenizer = build_tokenizer(vocabulary)
    total_bytes = weights_bytes(file)
    require_free_space(folder, total_bytes)

    _write_json(folder / "config.json", hugging_face_config(shape))
    _write_json(folder / "generation_config.json", _generation_config(vocabulary))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(vocabulary, shape.context_length))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)

    done_bytes = 0

    def advance(num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        on_progress(done_bytes, total_bytes)

    with gguf.open("rb") as source:
        source_sha256 = hashlib.file_digest(source, "sha256").hexdigest()
    # The source's hash makes the revision change with any bit of the weights, though it reads only samples of them.
    metadata = {"format": "pt", "source_sha256": source_sha256, "converter": str(CONVERTER_VERSION)}
    write_weights(file, shape, folder / "model.safetensors", metadata, advance)


def _generation_config(vocabulary: Vocabulary) -> dict[str, object]:
    return {
        "bos_token_id": vocabulary.bos_token_id,
        "eos_token_id": vocabulary.end_ids,
        "pad_token_id": vocabulary.pad_token_id,
    }


def _tokenizer_config(vocabulary: Vocabulary, context_length: int) -> dict[str, object]:
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": vocabulary.add_bos_token,
        "add_eos_token": vocabulary.add_eos_token,
        "bos_token": vocabulary.name_of(vocabulary.bos_token_id),
        "eos_token": vocabulary.name_of(vocabulary.eos_token_id),
        "pad_token": vocabulary.name_of(vocabulary.pad_token_id),
        "unk_token": vocabulary.name_of(vocabulary.unk_token_id),
        "chat_template": vocabulary.chat_template,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _write_json(path: Path, fields: Mapping[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
