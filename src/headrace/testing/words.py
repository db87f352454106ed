"""Tokenizers of whole words, so that a test can count tokens by eye."""

import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from headrace.encoder_request import Task
from headrace.workers.text.encoder_facts import EncoderFacts
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer
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


ENCODER_WORDS = ("<unk>", "[CLS]", "[SEP]", "[MASK]", *WORDS[3:])


def encoder_tokenizer(
    max_length: int,
    tasks: tuple[Task, ...] = ("embed", "classify", "rerank", "fill"),
    labels: tuple[str, ...] = (),
    width: int = 0,
) -> EncoderTokenizer:
    """Make an encoder's over ``ENCODER_WORDS``: one token in front of a text and one behind it, and 100 ids.

    Args:
        max_length: tokens of a text.
        tasks: what may be asked.
        labels: of a model that classifies; with one label it judges pairs.
        width: numbers of a vector; 0: not known.
    """
    model = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(ENCODER_WORDS)}, unk_token="<unk>"))
    model.add_special_tokens(list(ENCODER_WORDS[1:4]))
    model.pre_tokenizer = WhitespaceSplit()
    model.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return EncoderTokenizer(
        model, EncoderFacts("WordModel", tasks, 100, max_length, labels, len(labels) == 1, width), "[MASK]"
    )
