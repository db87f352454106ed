"""What ``headrace.accelerate`` and its models do not take, and how they say so."""

from typing import Any

import pytest
import torch
from tests.model.tiny_encoders import make_encoder
from transformers import BertConfig, BertLMHeadModel, BertModel, LlamaConfig, LlamaModel

import headrace
from headrace.errors import ConfigurationError, ModelError


def test_models_of_other_kinds_are_refused_by_name() -> None:
    small = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    llama = LlamaModel(LlamaConfig(**small)).eval()
    causal = BertLMHeadModel(BertConfig(**small)).eval()
    for model in (llama, causal, torch.nn.Linear(2, 2)):
        with pytest.raises(
            ConfigurationError,
            match=rf"{type(model).__name__}; it takes .*Albert, Bert, DistilBert, Roberta.*holds one of them$",
        ):
            headrace.accelerate(model)
    holder = torch.nn.Sequential(torch.nn.Identity(), BertModel(BertConfig(**small))).eval()
    with pytest.raises(ConfigurationError, match="It holds a BertModel as 1: accelerate that, in its place"):
        headrace.accelerate(holder)
    with pytest.raises(ConfigurationError, match=r"model\.eval\(\)"):
        headrace.accelerate(BertModel(BertConfig(**small)).train())
    with pytest.raises(ModelError, match="is_decoder True"):
        headrace.accelerate(BertModel(BertConfig(**small, is_decoder=True)).eval())
    with pytest.raises(ConfigurationError, match="on meta; headrace computes on cpu and cuda"):
        headrace.accelerate(BertModel(BertConfig(**small)).eval().to("meta"))
    with pytest.raises(ConfigurationError, match=r"float16 on cpu"):
        headrace.accelerate(BertModel(BertConfig(**small)).eval().half())


def test_what_a_call_may_not_ask_for_is_named() -> None:
    accelerated = headrace.accelerate(make_encoder("bert"))
    ids = torch.ones(2, 9, dtype=torch.int64)
    for more, told in (({"inputs_embeds": torch.ones(2, 9, 48)}, "inputs_embeds"), ({"labels": ids}, "labels")):
        with pytest.raises(TypeError, match=f"does not take {told}"):
            accelerated(ids, **more)
    with pytest.raises(TypeError, match="needs input_ids"):
        accelerated()
    with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 9, 9\); it must be \(2, 9\)"):
        accelerated(ids, attention_mask=torch.ones(2, 9, 9))
    with pytest.raises(ValueError, match="rows have 521 tokens; the model has positions for 520"):
        accelerated(torch.ones(1, 521, dtype=torch.int64))
    with pytest.raises(ValueError, match="attention_mask hides all of it"):
        accelerated(ids, attention_mask=torch.zeros(2, 9))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"input_ids": ["hello"]}, "input_ids must be a tensor, or a list of rows of integers; one is 'hello'"),
        ({"input_ids": "hello"}, "a list of rows of integers, not str"),
        ({"input_ids": 7}, "a list of rows of integers, not int"),
        ({"input_ids": {"input_ids": [[7]]}}, r"not dict; a tokenizer's result is given as model\(\*\*result\)"),
        (
            {"input_ids": torch.ones(1, 2).long(), "attention_mask": [[1, 1]]},
            "attention_mask must be a tensor, not list",
        ),
        ({"input_ids": [[7, 8]], "position_ids": [[0, 1]]}, "position_ids must be a tensor, not list"),
        ({"input_ids": [[7, 8], [7]], "token_type_ids": [[0, 1], [1, 1]]}, "rows as long as those of input_ids"),
        ({"input_ids": [[7, 8], [7]], "token_type_ids": [[0], [1]]}, "rows as long as those of input_ids"),
    ],
)
def test_what_is_no_batch_is_refused_in_words_of_the_call(given: dict[str, Any], told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=told):
        headrace.accelerate(make_encoder("bert"))(**given)


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
def test_numbers_that_are_no_integers_are_not_taken_for_them(name: str) -> None:
    model = headrace.accelerate(make_encoder("bert"))
    given = {"input_ids": torch.ones(1, 4, dtype=torch.int64), name: torch.ones(1, 4)}
    with pytest.raises(TypeError, match=f"{name} must be integers"):
        model(**given)
    with pytest.raises(TypeError, match="input_ids must be integers"):
        model([[7, 8], [7.5]])


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_a_batch_without_tokens_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no token to compute: input_ids is empty"):
        headrace.accelerate(make_encoder("bert"))(torch.zeros(shape, dtype=torch.int64))
