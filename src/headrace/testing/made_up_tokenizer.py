"""A byte-level tokenizer of any size whose words mean nothing."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

EOS_ID = 0
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def made_up_tokenizer(vocab_size: int) -> Tokenizer:
    """Make a tokenizer: an end of sequence, the 256 bytes, and words of letters, most of them behind a space.

    Text is encoded byte by byte, for nothing says how words are made of bytes; ids are decoded as any model's are.

    Args:
        vocab_size: ids, at least 257.
    """
    texts = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    if vocab_size < len(texts):
        raise ValueError(f"a vocabulary of {vocab_size} has no room for {len(texts)} tokens")
    for number in range(vocab_size - len(texts)):
        texts.append(("Ġ" if number % 4 else "") + _word(number))
    tokenizer = Tokenizer(models.BPE({text: index for index, text in enumerate(texts)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def _word(number: int) -> str:
    """A number's own word, of two letters or more."""
    letters = ""
    number += len(_LETTERS)
    while number:
        number, digit = divmod(number, len(_LETTERS))
        letters += _LETTERS[digit]
    return letters
