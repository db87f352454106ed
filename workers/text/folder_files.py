"""What a model folder's small JSON files say about text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from headrace.errors import ModelError
from headrace.workers.model_store.json_file import read_json, read_json_if_there

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The parts of config.json, generation_config.json and tokenizer_config.json that text needs.

    Attributes:
        vocab_size: rows of the embedding.
        context_length: positions the model was made for.
        eos_token_ids: ids that end a turn or a text; not empty.
        special_tokens: texts by their role, such as "bos_token"; only those that the model has.
        chat_template: jinja2 source, None where the model has none.
    """

    vocab_size: int
    context_length: int
    eos_token_ids: frozenset[int]
    special_tokens: Mapping[str, str]
    chat_template: str | None


def read_facts(folder: Path) -> ModelFacts:
    """Read a folder in Hugging Face layout.

    Raises:
        ModelError: a file is missing or damaged, or a needed field is.
    """
    config = read_json(folder / "config.json")
    tokenizer_config = read_json_if_there(folder / "tokenizer_config.json")
    special_tokens = read_json_if_there(folder / "special_tokens_map.json") | tokenizer_config
    return ModelFacts(
        vocab_size=positive(folder, config, "vocab_size"),
        # GPT-2 and GPT-J have a name of their own for it.
        context_length=positive(
            folder, config, "n_positions" if "n_positions" in config else "max_position_embeddings"
        ),
        eos_token_ids=_eos_token_ids(folder, read_json_if_there(folder / "generation_config.json"), config),
        special_tokens=MappingProxyType(
            {name: text for name in _SPECIAL_NAMES if (text := token_text(special_tokens.get(name))) is not None}
        ),
        chat_template=_chat_template(folder, tokenizer_config),
    )


def positive(folder: Path, config: dict[str, Any], name: str) -> int:
    """A field of ``config.json`` that must be a positive integer.

    Raises:
        ModelError: it is none, or missing.
    """
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{folder}/config.json has no valid {name}")
    return value


def _eos_token_ids(folder: Path, *configs: dict[str, Any]) -> frozenset[int]:
    # generation_config.json is the later word: chat models add the end of a turn there.
    found: object = next((value for config in configs if (value := config.get("eos_token_id")) is not None), [])
    ids = found if isinstance(found, list) else [found]
    if not ids or not all(isinstance(token_id, int) for token_id in ids):
        raise ModelError(f"{folder} names no eos_token_id, neither in generation_config.json nor in config.json")
    return frozenset(ids)


def token_text(token: object) -> str | None:
    """Read a token as either of the two forms in use: its text, or an object with its text and properties."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    separate = folder / "chat_template.jinja"
    if separate.is_file():
        try:
            return separate.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"{separate} cannot be read: {error}") from error
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        # Several templates by name; "default" is the one for plain conversations.
        template = next((entry.get("template") for entry in template if _is_default(entry)), None)
    return template if isinstance(template, str) else None


def _is_default(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("name") == "default"
