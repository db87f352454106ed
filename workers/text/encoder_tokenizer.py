"""The tokenizer of an encoder's folder: texts and pairs of texts to token ids, candidates for masks to text.

It never imports torch: the scheduler and the courier run without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import tokenizers
from tokenizers import normalizers

from headrace.workers.model_store.json_file import read_json_if_there
from headrace.workers.text.encoder_facts import EncoderFacts, read_encoder_facts
from headrace.workers.text.folder_files import token_text
from headrace.workers.text.tokenizer import read_tokenizer

_USUAL_MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """A text, or a pair, as the model sees it.

    Attributes:
        ids: its tokens, special ones included.
        num_first: how many of them are the first text's; all, where the model does not tell a pair's texts apart.
    """

    ids: Sequence[int]
    num_first: int


class EncoderTokenizer:
    """What one encoder's folder says about text.

    Attributes:
        facts: what may be asked of the model.
        mask: the text that stands for a mask in a request; "" where there is none.
        mask_id: its token; None where there is none.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, facts: EncoderFacts, mask: str = "") -> None:
        self.facts = facts
        self.mask = mask
        self.mask_id: int | None = tokenizer.token_to_id(mask) if mask else None
        self._tokenizer = tokenizer
        self._truncating = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        self._truncating.enable_truncation(facts.max_length, strategy="longest_first")

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """Read the tokenizer of a folder in Hugging Face layout.

        Raises:
            ModelError: the folder is no encoder's, or a file is missing or damaged.
        """
        facts, tokenizer = read_encoder_facts(path), read_tokenizer(path)
        if read_json_if_there(path / "sentence_bert_config.json").get("do_lower_case"):
            # As sentence-transformers does, whatever the tokenizer itself says of capitals.
            known = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *known])
        return cls(tokenizer, facts, read_mask(path, tokenizer))

    def encode_batch(self, texts: Sequence[str | tuple[str, str]], *, truncate: bool = False) -> list[TokenisedText]:
        """Encode many texts, pairs among them, in one call, in parallel.

        Args:
            texts: any number.
            truncate: to the model's limit; of a pair, its longer text first.
        """
        tokenizer = self._truncating if truncate else self._tokenizer
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        return [
            TokenisedText(encoding.ids, len(encoding.ids) if isinstance(text, str) else _num_first(encoding.type_ids))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def piece(self, token_id: int) -> str:
        """What one token is as a text."""
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text


def read_mask(path: Path, tokenizer: tokenizers.Tokenizer) -> str:
    """Find the text that stands for a mask: what a folder's files call it, or one of the usual; "" if none is a token.

    Raises:
        ModelError: a file is damaged.
    """
    said = read_json_if_there(path / "special_tokens_map.json") | read_json_if_there(path / "tokenizer_config.json")
    masks = (token_text(said.get("mask_token")), *_USUAL_MASKS)
    return next((text for text in masks if text and tokenizer.token_to_id(text) is not None), "")


def _num_first(type_ids: list[int]) -> int:
    return type_ids.index(1) if 1 in type_ids else len(type_ids)
