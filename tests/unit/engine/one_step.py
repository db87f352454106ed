"""One step of one prompt by a model with random weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.kernels.ragged import Ragged
from headrace.kernels.reference import ReferenceOperations
from headrace.memory.kv_cache import KVCache
from headrace.testing.state_dict import RandomWeights
from headrace.workers.engine.models.families import FAMILIES
from headrace.workers.engine.segments import segments_of

TOKENS = 11


def one_step(
    config: Mapping[str, Any], operations: ReferenceOperations, sampled: Sequence[int], *, num_kv_heads: int
) -> tuple[Tensor | None, Tensor]:
    """Compute ``TOKENS`` tokens of a model with heads of 8 and at most 60 words; logits, and all keys and values."""
    (name,) = config["architectures"]
    model = FAMILIES[name](config, RandomWeights(torch.device("cpu"), 0.3), operations, torch.float32)
    cache = KVCache(
        num_layers=model.config.num_layers,
        num_pages=4,
        page_size=4,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        dtype=torch.float32,
    )
    cache.storage.zero_()
    positions = torch.arange(TOKENS)
    batch = Ragged(
        (positions * 7) % 60,
        positions,
        torch.tensor(sampled, dtype=torch.int64),
        positions,
        tuple(segments_of(cache, (0, 1, 2), 0, TOKENS, first_query=0)),
        cache.layers,
    )
    with torch.inference_mode(), operations.step(batch):
        return model.forward(batch), cache.storage.clone()
