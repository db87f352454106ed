"""A tokenizer of whole words, so that a test can count tokens by eye."""

import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from headrace.workers.text.folder_files import ModelFacts
from headrace.workers.text.tokenizer import Tokenizer

WORDS = ("<unk>", "<end>", "user", "one", "two", "three", "x")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{% endfor %}"


def word_tokenizer(context_length: int) -> Tokenizer:
    """Make one over ``WORDS``; its vocabulary has 100 ids."""
    model = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    facts = ModelFacts(100, context_length, frozenset({1}), {}, CHAT_TEMPLATE)
    return Tokenizer(model, facts)
