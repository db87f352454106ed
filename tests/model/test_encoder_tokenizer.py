"""Our token ids of all-MiniLM-L6-v2 are those of transformers: texts, pairs, and what is cut."""

from transformers import AutoTokenizer

from headrace.workers.model_store.store import ModelFolder
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer

TEXTS = ["The sea is calm.", "x", "Größe & naïveté — 水は", "word " * 400, "[MASK] of France"]


def test_texts_and_pairs_become_the_tokens_that_transformers_makes(minilm: ModelFolder) -> None:
    ours, theirs = EncoderTokenizer.from_folder(minilm.path), AutoTokenizer.from_pretrained(minilm.path)
    assert [list(text.ids) for text in ours.encode_batch(TEXTS)] == theirs(TEXTS, truncation=False)["input_ids"]
    limit = {"truncation": True, "max_length": ours.facts.max_length}
    assert [list(text.ids) for text in ours.encode_batch(TEXTS, truncate=True)] == theirs(TEXTS, **limit)["input_ids"]
    pairs = [(text, other) for text in TEXTS for other in TEXTS]
    for truncate, options in ((False, {"truncation": False}), (True, limit)):
        wanted = theirs([a for a, _ in pairs], [b for _, b in pairs], **options)
        found = ours.encode_batch(pairs, truncate=truncate)
        assert [list(text.ids) for text in found] == wanted["input_ids"]
        assert [[0] * text.num_first + [1] * (len(text.ids) - text.num_first) for text in found] == wanted[
            "token_type_ids"
        ]
    assert (ours.mask, ours.mask_id) == (theirs.mask_token, theirs.mask_token_id)
