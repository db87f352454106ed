"""What a Llama computes in its first and its last layer: what later tokens see and what is asked for, and no more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.unit.engine.one_step import TOKENS, one_step
from torch import Tensor

from headrace.kernels.reference import ReferenceOperations
from headrace.kernels.table import Linear
from headrace.workers.engine.models import llama

LAYERS = 3
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


class Counting(ReferenceOperations):
    """The reference, which notes how many rows each gated product has, and each sum into the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.summed: list[int] = []

    def linear_add(self, x: Tensor, linear: Linear, residual: Tensor, *, product: Tensor | None = None) -> None:
        self.summed.append(x.shape[0])
        super().linear_add(x, linear, residual, product=product)

    def norm_gate_up(self, x: Tensor, weight: Tensor, eps: float, gate_up: Linear, **rooms: Tensor | None) -> Tensor:
        self.rows.append(x.shape[0])
        return super().norm_gate_up(x, weight, eps, gate_up, **rooms)


class Sparing(Counting):
    """The same, which keeps to what it must: features that mean nothing are NaN."""

    def norm_linear_for_sampled(
        self, x: Tensor, weight: Tensor, eps: float, linear: Linear, num_features: int, **rooms: Tensor | None
    ) -> Tensor:
        made = super().norm_linear_for_sampled(x, weight, eps, linear, num_features, **rooms)
        others = torch.ones(x.shape[0], dtype=torch.bool)
        others[self._batch.sampled] = False
        made[others, :num_features] = torch.nan
        return made


def run(sampled: list[int], operations_of: Callable[[], Counting] = Counting) -> tuple[Tensor | None, Tensor, Counting]:
    """Logits, keys and values of one step of one prompt, and the operations that it took."""
    operations = operations_of()
    return *one_step(CONFIG, operations, sampled, num_kv_heads=2), operations


def test_behind_the_last_layer_s_keys_and_values_sampled_tokens_alone_are_computed() -> None:
    every, written, counts = run(list(range(TOKENS)))
    assert every is not None
    assert counts.rows == [TOKENS] * LAYERS
    assert counts.summed == [TOKENS] * 2 * LAYERS
    some, same, counts = run([2, 10])
    assert some is not None
    assert torch.allclose(some, every[[2, 10]], atol=1e-5)
    assert torch.equal(same, written)
    assert counts.rows == [TOKENS, TOKENS, 2]
    assert counts.summed == [TOKENS, TOKENS] * (LAYERS - 1) + [2, 2]


def test_keys_and_values_are_written_where_nobody_samples() -> None:
    _, written, _ = run([TOKENS - 1])
    none, same, counts = run([])
    assert none is None
    assert torch.equal(same, written)
    assert counts.rows == [TOKENS] * (LAYERS - 1)
    assert counts.summed == [TOKENS, TOKENS] * (LAYERS - 1)


def test_in_the_last_layer_nobody_reads_queries_of_tokens_that_are_not_sampled() -> None:
    for sampled in ([2, 10], [TOKENS - 1], []):
        plain, written, _ = run(sampled)
        spared, same, _ = run(sampled, Sparing)
        assert torch.equal(same, written)
        assert same.isfinite().all()
        if plain is None or spared is None:
            assert not sampled
            assert plain is spared
        else:
            assert torch.equal(spared, plain)


class Tabulating(Sparing):
    """The same, with memory to spare: it notes what the first layer's table takes, and products of all features."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: list[int] = []
        self.products = 0

    def take_spare_bytes(self, num_bytes: int) -> bool:
        self.num_bytes.append(num_bytes)
        return True

    def norm_linear(self, x: Tensor, weight: Tensor, eps: float, linear: Linear, **rooms: Tensor | None) -> Tensor:
        self.products += 1
        return super().norm_linear(x, weight, eps, linear, **rooms)


def test_the_first_layer_s_products_can_be_looked_up_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "_ROWS_AT_ONCE", 17)
    plain, written, _ = run([2, 10])
    looked_up, same, counts = run([2, 10], Tabulating)
    assert plain is not None
    assert looked_up is not None
    assert torch.allclose(looked_up, plain, atol=1e-5)
    assert torch.allclose(same, written, atol=1e-5)
    assert isinstance(counts, Tabulating)
    assert counts.num_bytes == [CONFIG["vocab_size"] * (4 + 2 * 2) * 8 * 4]
    # Four pieces of the table, then the layer between the first and the last, and the head.
    assert counts.products == 4 + (LAYERS - 2) + 1
