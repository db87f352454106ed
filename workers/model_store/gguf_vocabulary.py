"""The vocabulary of a GGUF file: its tokens, their kinds, and the ones with a part to play."""

from dataclasses import dataclass
from typing import Literal

from headrace.errors import ModelError
from headrace.workers.model_store.gguf_file import GgufFile
from headrace.workers.model_store.gguf_sentencepiece import merges_by_score
from headrace.workers.model_store.token_type import TokenType

# Names that models give to the token that ends a turn or a text; llama.cpp recognises them by name as well, because
# many files name only one such token in their metadata.
_END_NAMES = frozenset(
    (
        "<|im_end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|endofturn|>",
        "<end_of_turn>",
        "</s>",
    )
)
# What llama.cpp takes where a file does not say: these begin a text with a token.
_BEGIN = frozenset(("llama-bpe", "llama3", "llama-v3", "tekken"))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a GGUF file.

    Attributes:
        kind: in byte-level BPE each character of a token stands for a byte; in SentencePiece tokens are text.
        tokens: text of each token, by id.
        types: kind of each token, by id.
        merges: BPE merges, best first, each a pair of token texts.
        pre_tokenizer: GGUF's name of the rule that cuts text into words before BPE; "" in SentencePiece.
        space_prefix: a text begins with a space that is not written.
        bos_token_id: the id that begins a text, None where there is none.
        eos_token_id: the id that ends a text.
        end_ids: every id that ends a turn or a text, ``eos_token_id`` first.
        pad_token_id: the id that fills short rows, None where there is none.
        unk_token_id: the id for what cannot be encoded, None where there is none.
        add_bos_token: an encoded text begins with ``bos_token_id``.
        add_eos_token: an encoded text ends with ``eos_token_id``.
        chat_template: jinja2 template of a conversation, None where there is none.
    """

    kind: Literal["byte-level", "sentencepiece"]
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[tuple[str, str], ...]
    pre_tokenizer: str
    space_prefix: bool
    bos_token_id: int | None
    eos_token_id: int
    end_ids: tuple[int, ...]
    pad_token_id: int | None
    unk_token_id: int | None
    add_bos_token: bool
    add_eos_token: bool
    chat_template: str | None

    def name_of(self, token_id: int | None) -> str | None:
        """Return the text of a token, None for None."""
        return None if token_id is None else self.tokens[token_id]


def read_vocabulary(file: GgufFile) -> Vocabulary:
    """Read the vocabulary of ``file``.

    Raises:
        ModelError: it is of another kind, or a part of it is missing or contradicts another.
    """
    kind = _kind(file)
    is_text = kind == "sentencepiece"
    tokens, types = _tokens(file)
    roles = {role: _find_id(file, role, len(tokens)) for role in ("bos", "eos", "eot", "eom", "padding", "unknown")}
    eos_token_id = roles["eos"]
    if eos_token_id is None:
        raise ModelError(f"{file.path} has no tokenizer.ggml.eos_token_id")
    pre_tokenizer = "" if is_text else file.get("tokenizer.ggml.pre", str)
    add_bos_token = file.find("tokenizer.ggml.add_bos_token", bool)
    if add_bos_token is None:
        add_bos_token = is_text or pre_tokenizer in _BEGIN
    if add_bos_token and roles["bos"] is None:
        raise ModelError(f"{file.path}: texts are to begin with a token that tokenizer.ggml.bos_token_id does not name")
    space_prefix = file.find("tokenizer.ggml.add_space_prefix", bool)
    named_ends = (
        index
        for index, (token, token_type) in enumerate(zip(tokens, types, strict=True))
        if token_type is TokenType.CONTROL and token in _END_NAMES
    )
    candidates = (eos_token_id, roles["eot"], roles["eom"], *named_ends)
    return Vocabulary(
        kind=kind,
        tokens=tokens,
        types=types,
        merges=_merges(file, tokens, types) if is_text else _written_merges(file),
        pre_tokenizer=pre_tokenizer,
        space_prefix=is_text if space_prefix is None else space_prefix,
        bos_token_id=roles["bos"],
        eos_token_id=eos_token_id,
        end_ids=tuple(dict.fromkeys(end for end in candidates if end is not None)),
        pad_token_id=roles["padding"],
        unk_token_id=roles["unknown"],
        add_bos_token=add_bos_token,
        add_eos_token=file.find("tokenizer.ggml.add_eos_token", bool) or False,
        chat_template=file.find("tokenizer.chat_template", str),
    )


def _kind(file: GgufFile) -> Literal["byte-level", "sentencepiece"]:
    kind = file.get("tokenizer.ggml.model", str)
    if kind not in ("gpt2", "llama"):
        raise ModelError(
            f"{file.path} has a tokenizer of the kind {kind!r}; byte-level BPE ('gpt2') and SentencePiece's "
            "BPE ('llama') can be converted"
        )
    refused = ["precompiled_charsmap", "remove_extra_whitespaces"]
    if kind == "gpt2":
        refused.append("add_space_prefix")
    for name in refused:
        key = f"tokenizer.ggml.{name}"
        if key in file.metadata_keys() and (name == "precompiled_charsmap" or file.find(key, bool)):
            raise ModelError(f"{file.path}: {key} is not supported")
    return "byte-level" if kind == "gpt2" else "sentencepiece"


def _tokens(file: GgufFile) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    tokens = file.find_list("tokenizer.ggml.tokens", str) or []
    types = file.find_list("tokenizer.ggml.token_type", int) or []
    if not tokens or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ModelError(f"{file.path}: tokenizer.ggml.tokens is missing, repeats itself, or does not fit token_type")
    try:
        return tuple(tokens), tuple(map(TokenType, types))
    except ValueError as error:
        raise ModelError(f"{file.path}: tokenizer.ggml.token_type: {error}") from error


def _merges(file: GgufFile, tokens: tuple[str, ...], types: tuple[TokenType, ...]) -> tuple[tuple[str, str], ...]:
    scores = file.find_list("tokenizer.ggml.scores", float) or []
    if len(scores) != len(tokens):
        raise ModelError(f"{file.path}: tokenizer.ggml.scores is missing, or does not fit tokens")
    return merges_by_score(tokens, types, scores)


def _written_merges(file: GgufFile) -> tuple[tuple[str, str], ...]:
    return tuple(_split_merge(file, merge) for merge in file.find_list("tokenizer.ggml.merges", str) or [])


def _find_id(file: GgufFile, role: str, num_tokens: int) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    token_id = file.find(key, int)
    if token_id is not None and not 0 <= token_id < num_tokens:
        raise ModelError(f"{file.path}: {key} is {token_id}, of {num_tokens} tokens")
    return token_id


def _split_merge(file: GgufFile, merge: str) -> tuple[str, str]:
    # A space is always written as another character in byte-level BPE, so the one space parts the pair.
    left, separator, right = merge.partition(" ")
    if not (left and separator and right) or " " in right:
        raise ModelError(f"{file.path}: tokenizer.ggml.merges holds {merge!r}, which is not a pair")
    return left, right
