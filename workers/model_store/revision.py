"""The revision of a model folder: a short hash by which two workers know that they serve the same model.

It must change when weights, configuration or tokenizer change, must not depend on where the folder lies, and is
computed at every start, so it cannot read gigabytes. The small files are hashed whole. Of each safetensors file it
takes the size, the header (names, shapes, types, offsets and metadata) and ``SAMPLE_BYTES`` from the middle of every
tensor: a training step or a merge touches nearly every value of the tensors it touches, so one sample a tensor sees
it. What only a few rows of one tensor betray goes unseen, except in converted folders, whose header carries the
SHA-256 of the whole source.
"""

import hashlib
import json
from pathlib import Path

from headrace.errors import ModelError

SAMPLE_BYTES = 4096
#: Names that sentence-transformers gives to folders of modules: ``1_Pooling``, ``2_Dense``.
MODULE_FOLDERS = "[0-9]*_*"
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "modules.json",
    "sentence_bert_config.json",
)
_MAX_HEADER_BYTES = 100 << 20  # the limit of the safetensors format itself


def revision_of(folder: Path) -> str:
    """Compute the revision of a folder in Hugging Face layout: 16 hexadecimal digits.

    Raises:
        ModelError: a file cannot be read, or a safetensors file is damaged.
    """
    digest = hashlib.sha256()
    try:
        for name in _SMALL_FILES:
            path = folder / name
            if path.is_file():
                _add(digest, name, path.read_bytes())
        for path in sorted(folder.glob("*.safetensors")):
            _add(digest, path.name, _sample_safetensors(path))
        # What stands on an encoder lies in folders of its own: how it is pooled, and dense layers behind that.
        for module in sorted(folder.glob(MODULE_FOLDERS)):
            for path in sorted(module.glob("config.json")):
                _add(digest, f"{module.name}/{path.name}", path.read_bytes())
            for path in sorted(module.glob("*.safetensors")):
                _add(digest, f"{module.name}/{path.name}", _sample_safetensors(path))
    except OSError as error:
        raise ModelError(f"cannot read the model in {folder}: {error}") from error
    return digest.hexdigest()[:16]


def _add(digest: "hashlib._Hash", name: str, content: bytes) -> None:
    # Lengths keep "ab" + "c" and "a" + "bc" apart.
    digest.update(f"{name}\0{len(content)}\0".encode())
    digest.update(content)


def _sample_safetensors(path: Path) -> bytes:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size_bytes - 8):
            raise ModelError(f"{path} is not a safetensors file, or is damaged")
        header = file.read(header_bytes)
        try:
            spans = sorted(
                tuple(tensor["data_offsets"]) for name, tensor in json.loads(header).items() if name != "__metadata__"
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} has a damaged header: {error}") from error
        if spans and 8 + header_bytes + spans[-1][1] != size_bytes:
            raise ModelError(f"{path} has {size_bytes} bytes, its header promises {8 + header_bytes + spans[-1][1]}")
        samples = [size_bytes.to_bytes(8, "little"), header]
        for begin, end in spans:
            length = min(SAMPLE_BYTES, end - begin)
            file.seek(8 + header_bytes + begin + (end - begin - length) // 2)
            samples.append(file.read(length))
    return b"".join(samples)
