"""The tokenizer of a model folder: prompts to token ids, conversations to prompts, ids to pieces of text.

It never imports torch: the scheduler and the courier run without it. Growing text is the detokenizer's affair.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import tokenizers

from headrace.errors import ModelError
from headrace.workers.text.chat_template import ChatTemplate
from headrace.workers.text.folder_files import ModelFacts, read_facts
from headrace.workers.text.pieces import Pieces, read_pieces

_OLDER_FILES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Read the ``tokenizer.json`` of a folder in Hugging Face layout, without the limits of any task.

    Raises:
        ModelError: it is missing or damaged, or of an older format.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        older = [name for name in _OLDER_FILES if (path / name).is_file()]
        if older:
            raise ModelError(
                f"{path} has its tokenizer only in the older format {older[0]}; tokenizer.json is needed, which "
                "transformers writes: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        raise ModelError(f"{path} has no tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"{file} cannot be read: {error}") from error
    # A folder may carry the limits of the task it was trained on; how long a text may be is not its decision.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Tokenizer:
    """What one model folder says about text.

    Special tokens written inside a prompt ("<|im_end|>") are parsed as special tokens, as Hugging Face does.

    Attributes:
        vocab_size: number of ids the model knows, the rows of its embedding; valid ids are below it.
        context_length: positions the model was made for: prompt and output tokens together.
        eos_token_ids: ids that end the model's turn or text, at least one.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, facts: ModelFacts) -> None:
        self.vocab_size = facts.vocab_size
        self.context_length = facts.context_length
        self.eos_token_ids = facts.eos_token_ids
        self._tokenizer = tokenizer
        self._facts = facts

    @classmethod
    def from_folder(cls, path: Path) -> Self:
        """Read the tokenizer of a folder in Hugging Face layout.

        Raises:
            ModelError: tokenizer.json or config.json is missing or damaged, or the tokenizer is of an older format.
        """
        tokenizer = read_tokenizer(path)
        return cls(tokenizer, read_facts(path))

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[tuple[int, ...]]:
        """Encode many texts in one call, in parallel.

        Args:
            texts: the texts, any number.
            add_special_tokens: add what the model expects around a text (a first token, mostly); a rendered chat has
                it already.

        Returns:
            the token ids of each text, in the order of ``texts``.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [tuple(encoding.ids) for encoding in encodings]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode a whole text, without special tokens; bytes that are no text become U+FFFD."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def render_chat(self, messages: Sequence[Mapping[str, object]]) -> str:
        """Write a conversation as the prompt that asks for the assistant's next turn.

        Encode the result with ``add_special_tokens=False``: the template writes them itself.

        Args:
            messages: each at least a ``role`` and a ``content``, oldest first.

        Raises:
            InvalidRequestError: the folder has no template, or the template refuses the messages.
            ModelError: the folder's template is not valid jinja2.
        """
        return self._chat_template.render(messages)

    @cached_property
    def pieces(self) -> Pieces:
        """What each id adds to a text, made when first asked for (the scheduler never asks).

        Raises:
            ModelError: the tokenizer decodes in a way that is not supported.
        """
        return read_pieces(self._tokenizer, self.vocab_size)

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        return ChatTemplate(self._facts.chat_template, self._facts.special_tokens)
