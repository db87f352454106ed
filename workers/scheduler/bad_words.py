"""Bad words as token sequences: what a text may look like in tokens where a word of it begins.

A sequence is judged by tokens and not by text: another spelling of the same word in smaller tokens passes, as it does
with every engine that has this field.
"""

from collections.abc import Sequence

from headrace.workers.text.tokenizer import Tokenizer


def spell_bad_words(
    requests: Sequence[Sequence[str | list[int]]], tokenizer: Tokenizer
) -> list[tuple[tuple[int, ...], ...]]:
    """Make token sequences of the bad words of many requests, with one call of the tokenizer.

    Args:
        requests: a request each, its bad words: texts, or token ids that are taken as they are.
        tokenizer: of the model.

    Returns:
        A request each: every text as it is spelt without and with a space before it, each sequence once.
    """
    texts = [text for words in requests for word in words if isinstance(word, str) for text in _variants(word)]
    spelt = iter(tokenizer.encode_batch(texts, add_special_tokens=False) if texts else ())
    found: list[tuple[tuple[int, ...], ...]] = []
    for words in requests:
        sequences: dict[tuple[int, ...], None] = {}
        for word in words:
            variants = [next(spelt) for _ in _variants(word)] if isinstance(word, str) else [tuple(word)]
            sequences |= dict.fromkeys(variant for variant in variants if variant)
        found.append(tuple(sequences))
    return found


def _variants(word: str) -> tuple[str, str]:
    bare = word.removeprefix(" ")
    return bare, " " + bare
