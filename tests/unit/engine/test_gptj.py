"""GPT-J's blocks, whose attention and MLP read the same norm and add to the same stream."""

import torch
from tests.unit.engine.one_step import TOKENS, one_step
from torch import Tensor

from headrace.kernels.reference import ReferenceOperations
from headrace.kernels.table import Linear

LAYERS = 3
CONFIG = {
    "architectures": ["GPTJForCausalLM"],
    "model_type": "gptj",
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "rotary_dim": 4,
    "vocab_size": 60,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}


class Counting(ReferenceOperations):
    """The reference, which notes the rows of products that add to the stream, and of sums by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.joined: list[int] = []
        self.apart: list[int] = []

    def linear_add(self, x: Tensor, linear: Linear, residual: Tensor, *, product: Tensor | None = None) -> None:
        self.joined.append(x.shape[0])
        residual += self.linear(x, linear)

    def add(self, x: Tensor, y: Tensor) -> None:
        self.apart.append(x.shape[0])
        super().add(x, y)


def test_what_attention_adds_to_the_stream_is_added_by_its_last_product() -> None:
    counts = Counting()
    logits, written = one_step(CONFIG, counts, [2, TOKENS - 1], num_kv_heads=4)
    assert logits is not None
    assert counts.joined == [TOKENS] * LAYERS
    assert not counts.apart
    plain, same = one_step(CONFIG, ReferenceOperations(), [2, TOKENS - 1], num_kv_heads=4)
    assert plain is not None
    assert torch.equal(logits, plain)
    assert torch.equal(written, same)
