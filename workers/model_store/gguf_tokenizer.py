"""The Hugging Face ``tokenizer.json`` of a GGUF file's vocabulary."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from headrace.errors import ModelError
from headrace.workers.model_store.gguf_sentencepiece import build_sentencepiece
from headrace.workers.model_store.gguf_vocabulary import Vocabulary
from headrace.workers.model_store.token_type import TokenType

# How words are cut, as the models' makers published it in their tokenizer.json.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# These look a whole word up before they merge; the others have no such short cut.
_WHOLE_WORDS = frozenset(("llama-bpe", "llama3", "llama-v3", "tekken"))


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Build the tokenizer that the vocabulary describes.

    Raises:
        ModelError: its pre-tokenizer is not a known one, its merges do not fit its tokens, or a byte has no token.
    """
    if vocabulary.kind == "sentencepiece":
        tokenizer = build_sentencepiece(
            vocabulary.tokens,
            vocabulary.merges,
            vocabulary.name_of(vocabulary.unk_token_id),
            space_prefix=vocabulary.space_prefix,
        )
    else:
        tokenizer = _byte_level(vocabulary)
    if post_processor := _post_processor(vocabulary):
        tokenizer.post_processor = post_processor
    for token, token_type in zip(vocabulary.tokens, vocabulary.types, strict=True):
        # One at a time and in the order of their ids, which are those of the vocabulary already.
        if token_type in (TokenType.CONTROL, TokenType.UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token_type is TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
    return tokenizer


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    make_pre_tokenizer = _PRE_TOKENIZERS.get(vocabulary.pre_tokenizer)
    if make_pre_tokenizer is None:
        raise ModelError(
            f"the pre-tokenizer {vocabulary.pre_tokenizer!r} is not supported; these are: {', '.join(_PRE_TOKENIZERS)}"
        )
    tokenizer = Tokenizer(_model(vocabulary))
    if vocabulary.pre_tokenizer == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = make_pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _model(vocabulary: Vocabulary) -> models.BPE:
    ignore_merges = vocabulary.pre_tokenizer in _WHOLE_WORDS
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    for pair in vocabulary.merges:
        if any(part not in ids for part in (*pair, "".join(pair))):
            raise ModelError(f"the merge {pair} names a token that the vocabulary does not have")
    return models.BPE(vocab=ids, merges=list(vocabulary.merges), ignore_merges=ignore_merges)


def _post_processor(vocabulary: Vocabulary) -> processors.PostProcessor | None:
    byte_level = processors.ByteLevel(trim_offsets=False) if vocabulary.kind == "byte-level" else None
    ids = [
        vocabulary.bos_token_id if vocabulary.add_bos_token else None,
        vocabulary.eos_token_id if vocabulary.add_eos_token else None,
    ]
    names = [vocabulary.name_of(token_id) for token_id in ids]
    if names == [None, None]:
        return byte_level
    template = processors.TemplateProcessing(
        single=[name for name in (names[0], "$A", names[1]) if name],
        pair=[name for name in (names[0], "$A", names[1], names[0], "$B:1", names[1]) if name],
        special_tokens=[(name, token_id) for name, token_id in zip(names, ids, strict=True) if name],
    )
    return processors.Sequence([byte_level, template]) if byte_level else template


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _words(pattern: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    def make() -> pre_tokenizers.PreTokenizer:
        cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return make


_PRE_TOKENIZERS: Final[Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]]] = MappingProxyType(
    {
        "smollm": _smollm,
        "default": _gpt2,
        "gpt-2": _gpt2,
        "llama-bpe": _words(_LLAMA3_WORDS),
        "llama3": _words(_LLAMA3_WORDS),
        "llama-v3": _words(_LLAMA3_WORDS),
        "qwen2": _words(_QWEN2_WORDS),
        "tekken": _words(_TEKKEN_WORDS),
    }
)
