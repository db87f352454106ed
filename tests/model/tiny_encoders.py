"""Tiny random encoders of every family and head, made by transformers."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

VOCAB = 211
# Widths that vectors of a processor divide, as those of all real models: what is left over is rounded otherwise.
BERT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 520,
}
DISTILBERT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "dim": 48,
    "hidden_dim": 96,
    "n_layers": 3,
    "n_heads": 4,
    "max_position_embeddings": 512,
}

CONFIGS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "bert": (BertConfig, BERT),
    "bert with few heads and relu": (BertConfig, BERT | {"num_attention_heads": 2, "hidden_act": "relu"}),
    "bert with the tanh form of gelu": (BertConfig, BERT | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
    "minilm": (BertConfig, BERT | {"hidden_size": 72, "num_attention_heads": 12, "type_vocab_size": 3}),
    "roberta": (RobertaConfig, BERT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": (XLMRobertaConfig, BERT | {"type_vocab_size": 1, "pad_token_id": 5}),
    "distilbert": (DistilBertConfig, DISTILBERT),
    "distilbert with sines": (DistilBertConfig, DISTILBERT | {"sinusoidal_pos_embds": True, "activation": "relu"}),
    "albert": (AlbertConfig, BERT | {"embedding_size": 20}),
    "albert with groups": (
        AlbertConfig,
        BERT | {"embedding_size": 20, "num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
}

CLASSES: dict[str, Any] = {
    "Model": AutoModel,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
}


def make_encoder(name: str, task: str = "Model", folder: Path | None = None, **changes: Any) -> PreTrainedModel:
    """Make a model, and save it into ``folder``.

    Weights are spread wider than by default, so that what a token is, and where it stands, shows in every vector.
    """
    torch.manual_seed(11)
    config_class, values = CONFIGS[name]
    model: PreTrainedModel = CLASSES[task].from_config(config_class(**(values | changes))).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_scale = parameter.dim() == 1 and parameter_name.endswith("weight")
            torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.15)
    if folder is not None:
        model.save_pretrained(folder)
    return model


def texts(*lengths: int, low: int = 6) -> list[tuple[int, ...]]:
    """Random token ids, without those of padding."""
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(low, VOCAB, (length,), generator=generator).tolist()) for length in lengths]
