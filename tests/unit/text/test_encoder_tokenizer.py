"""An encoder's folder as scheduler and courier read it, without loading the model."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers.models import WordLevel

from headrace.errors import ModelError
from headrace.testing.words import encoder_tokenizer
from headrace.workers.encoder.families import ARCHITECTURES
from headrace.workers.text.encoder_facts import is_encoder, read_encoder_facts
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer

CONFIG = {"vocab_size": 50, "max_position_embeddings": 66, "hidden_size": 8, "pad_token_id": 1}


def folder(path: Path, architecture: str = "BertModel", files: dict[str, Any] | None = None, **fields: Any) -> Path:
    config = CONFIG | {"architectures": [architecture], **fields}
    for name, content in ({"config.json": config} | (files or {})).items():
        (path / name).write_text(json.dumps(content))
    return path


def test_every_architecture_that_the_encoder_loads_can_be_asked_and_no_other(tmp_path: Path) -> None:
    for architecture in ARCHITECTURES:
        assert is_encoder(folder(tmp_path, architecture))
        facts = read_encoder_facts(tmp_path)
        assert facts.architecture == architecture
        assert "embed" in facts.tasks
        assert ("fill" in facts.tasks) == architecture.endswith(("ForMaskedLM", "ForPreTraining"))
        assert ("classify" in facts.tasks) == architecture.endswith("ForSequenceClassification")
    for other in ("LlamaForCausalLM", "BertLMHeadModel"):
        assert not is_encoder(folder(tmp_path, other))
        with pytest.raises(ModelError, match="is no encoder that is supported"):
            read_encoder_facts(tmp_path)
    with pytest.raises(ModelError, match=r"'T5EncoderModel' is no encoder .* Albert, Bert.* each with one of Model"):
        is_encoder(folder(tmp_path, "T5EncoderModel"))


def test_a_text_may_be_as_long_as_the_model_has_positions_or_as_its_folder_says(tmp_path: Path) -> None:
    assert read_encoder_facts(folder(tmp_path)).max_length == 66
    assert read_encoder_facts(folder(tmp_path, "RobertaModel")).max_length == 64
    limit = {"sentence_bert_config.json": {"max_seq_length": 20}}
    assert read_encoder_facts(folder(tmp_path, files=limit)).max_length == 20
    assert (
        read_encoder_facts(folder(tmp_path, files={"sentence_bert_config.json": {"max_seq_length": 999}})).max_length
        == 66
    )


def test_a_folder_that_wants_small_letters_gets_them_and_one_that_wants_a_prompt_is_refused(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(WordLevel({"a": 0, "?": 1}, unk_token="?"))
    for wants, token_id in ((False, 1), (True, 0)):
        files = {
            "tokenizer.json": json.loads(words.to_str()),
            "sentence_bert_config.json": {"do_lower_case": wants},
            "config_sentence_transformers.json": {"prompts": {"query": "query: "}, "default_prompt_name": None},
        }
        (text,) = EncoderTokenizer.from_folder(folder(tmp_path, files=files)).encode_batch(["A"])
        assert list(text.ids) == [token_id]
    folder(tmp_path, files={"config_sentence_transformers.json": {"default_prompt_name": "query"}})
    with pytest.raises(ModelError, match="default_prompt_name 'query' would put that prompt before every text"):
        read_encoder_facts(tmp_path)


def test_labels_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    head = "BertForSequenceClassification"
    facts = read_encoder_facts(folder(tmp_path, head, id2label={"1": "b", "0": "a", "2": "c"}))
    assert (facts.labels, facts.judges_pairs, facts.tasks) == (("a", "b", "c"), False, ("embed", "classify"))
    facts = read_encoder_facts(folder(tmp_path, head, id2label={"0": "relevant"}))
    assert (facts.judges_pairs, "rerank" in facts.tasks) == (True, True)
    assert read_encoder_facts(folder(tmp_path, head)).labels == ("LABEL_0", "LABEL_1")
    with pytest.raises(ModelError, match="id2label"):
        read_encoder_facts(folder(tmp_path, head, id2label={"1": "b"}))


def test_the_mask_is_the_one_that_the_folder_names(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(WordLevel({"a": 0, "[MASK]": 1, "<blank>": 2}, unk_token="a"))
    for settings, mask, mask_id in (({}, "[MASK]", 1), ({"mask_token": {"content": "<blank>"}}, "<blank>", 2)):
        folder(tmp_path, files={"tokenizer.json": json.loads(words.to_str()), "tokenizer_config.json": settings})
        found = EncoderTokenizer.from_folder(tmp_path)
        assert (found.mask, found.mask_id) == (mask, mask_id)


def test_texts_and_pairs_are_tokenised_in_one_call_with_what_stands_around_them() -> None:
    tokenizer = encoder_tokenizer(6)
    found = tokenizer.encode_batch(["one", ("one two", "x"), "x x x x x x x"])
    assert [(list(text.ids), text.num_first) for text in found] == [
        ([1, 4, 2], 3),
        ([1, 4, 5, 2, 7, 2], 4),
        ([1, *[7] * 7, 2], 9),
    ]
    cut = tokenizer.encode_batch(["x x x x x x x", ("one two three", "x x x x")], truncate=True)
    assert [len(text.ids) for text in cut] == [6, 6]
    assert (list(cut[0].ids), tokenizer.piece(4)) == ([1, 7, 7, 7, 7, 2], "one")
    assert len(tokenizer.encode_batch(["x " * 9])[0].ids) == 11, "cutting one window leaves the next as it is"
