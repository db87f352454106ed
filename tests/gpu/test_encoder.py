"""Encoders of every family on a GPU against transformers'."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.gpu.tolerance import assert_fair
from tests.model.tiny_encoders import CONFIGS, make_encoder, texts
from torch import Tensor
from transformers import PreTrainedModel

from headrace.kernels.cuda_encoder import CudaEncoder
from headrace.kernels.encoder_reference import EncoderReference
from headrace.testing.state_dict import StateDict
from headrace.workers.encoder.loading import Encoder, build_encoder
from headrace.workers.encoder.model import Trace
from headrace.workers.encoder.runner import row_positions

# Heads of 32 and of 64 numbers; the last one reads 2,048 tokens.
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 400, "type_vocab_size": 2},
    "bert with few heads and relu": {"hidden_size": 128, "num_attention_heads": 2},
    "bert with the tanh form of gelu": {"hidden_size": 192, "num_attention_heads": 6},
    "minilm": {"hidden_size": 384, "num_attention_heads": 12},
    "roberta": {"hidden_size": 192, "num_attention_heads": 6},
    "xlm-roberta": {"hidden_size": 128, "num_attention_heads": 2},
    "distilbert": {"dim": 192, "n_heads": 3},
    "distilbert with sines": {"dim": 192, "n_heads": 2},
    "albert": {"hidden_size": 192, "num_attention_heads": 3, "embedding_size": 64},
    "albert with groups": {"hidden_size": 256, "num_attention_heads": 2, "embedding_size": 20},
}
LENGTHS = (1, 512, 2, 17, 64, 17, 3, 255, 65)


def load(model: PreTrainedModel, operations: Any, dtype: torch.dtype) -> Encoder:
    tensors, config = model.state_dict(), model.config.to_dict() | {"architectures": [type(model).__name__]}
    return build_encoder(config, StateDict(tensors), tensors, operations, dtype)


def encode(encoder: Encoder, rows: Sequence[Sequence[int]], trace: Trace | None = None) -> Tensor:
    config = encoder.model.config
    ids = [torch.tensor(row) for row in rows]
    positions = [row_positions(row, config.first_position, config.pad_id) for row in ids]
    batch = encoder.operations.pack(torch.cat(ids), torch.cat(positions), None, [len(row) for row in rows])
    with torch.inference_mode():
        return encoder.model.forward(batch, trace)


def theirs(model: PreTrainedModel, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([row], device=device)).last_hidden_state[0] for row in rows])


def check(model: PreTrainedModel, rows: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device) -> None:
    model.to(device, dtype)
    ours, peer = encode(load(model, CudaEncoder(device), dtype), rows), theirs(model, rows, device)
    truth = theirs(model.to(dtype=torch.float64), rows, device)
    assert truth.std() > 0.3, "hidden states that are all alike would prove nothing"
    assert_fair(ours, truth, peer)


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_of_packed_rows_are_those_of_transformers(
    device: torch.device, dtype: torch.dtype, name: str
) -> None:
    check(make_encoder(name, **SHAPES[name]), texts(*LENGTHS), dtype, device)


def test_a_row_of_2048_tokens(device: torch.device, dtype: torch.dtype) -> None:
    model = make_encoder("bert", **SHAPES["bert"] | {"max_position_embeddings": 2048})
    check(model, texts(2048, 5, 1500), dtype, device)


@pytest.mark.parametrize("num_tokens", [3, 40], ids=["thin products", "products of cuBLAS"])
def test_weights_of_attention_sum_to_one_and_are_the_reference_s(
    device: torch.device, dtype: torch.dtype, num_tokens: int
) -> None:
    model, rows = make_encoder("bert", **SHAPES["bert"]).to(device, dtype), texts(num_tokens, 5)
    ours, plain = Trace(hidden_states=None), Trace(hidden_states=None)
    encode(load(model, CudaEncoder(device), dtype), rows, ours)
    encode(load(model, EncoderReference(device), dtype), rows, plain)
    assert ours.attentions is not None
    assert plain.attentions is not None
    for layer, expected in zip(ours.attentions, plain.attentions, strict=True):
        for row, same in zip(layer, expected, strict=True):
            assert row.shape == same.shape
            torch.testing.assert_close(row.sum(-1), torch.ones_like(row.sum(-1)), atol=4e-3, rtol=0)
            torch.testing.assert_close(row, same, atol=0.05, rtol=0.05)
