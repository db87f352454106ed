from pathlib import Path

import pytest
import torch

from headrace.memory.kv_cache import KVCache, PageOrder

ORDERS: list[PageOrder] = ["tokens", "heads"]


def make(order: PageOrder = "tokens") -> KVCache:
    cache = KVCache(
        num_layers=2, num_pages=5, page_size=2, num_kv_heads=3, head_dim=4, dtype=torch.float32, order=order
    )
    cache.storage.zero_()
    return cache


def test_views_show_a_run_of_pages_in_each_layer_without_a_copy() -> None:
    cache = make()
    views = cache.views(4, 7)
    cache.layers[1][0, 5, 2] = 7.0
    cache.layers[1][1, 6, 0] = 8.0
    assert len(views) == 2
    keys, values = views[1]
    assert keys.shape == values.shape == (1, 3, 3, 4)
    assert keys[0, 2, 1].tolist() == [7.0] * 4
    assert values[0, 0, 2].tolist() == [8.0] * 4
    assert torch.stack([*views[0], keys, values]).sum() == 7.0 * 4 + 8.0 * 4


@pytest.mark.parametrize("order", ORDERS)
def test_pages_have_one_shape_whatever_lies_next_to_each_other(order: PageOrder) -> None:
    cache = make(order)
    keys, values = cache.paged(1)
    assert keys.shape == values.shape == (5, 3, 2, 4)
    values[3, 2, 1] = 5.0
    where = (1, 1, 3, 1, 2) if order == "tokens" else (1, 1, 3, 2, 1)
    assert cache.storage[where].tolist() == [5.0] * 4
    assert cache.storage.sum() == 20.0


@pytest.mark.parametrize("order", ORDERS)
def test_a_copy_takes_the_first_tokens_of_a_page_in_all_layers_and_nothing_else(order: PageOrder) -> None:
    cache = make(order)
    cache.storage.normal_()
    before = [[part.clone() for part in cache.paged(layer)] for layer in range(2)]
    cache.copy(1, 4, 1)
    for layer in range(2):
        for part, old in zip(cache.paged(layer), before[layer], strict=True):
            assert torch.equal(part[4, :, :1], old[1, :, :1])
            assert torch.equal(part[4, :, 1:], old[4, :, 1:])
            assert torch.equal(part[:4], old[:4])


def test_memory_that_no_token_was_written_to_is_not_committed() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_bytes()
    cache = KVCache(num_layers=4, num_pages=1 << 12, page_size=16, num_kv_heads=4, head_dim=64, dtype=torch.float32)
    assert cache.num_bytes == 512 << 20
    cache.layers[2][:, :16] = 1.0
    assert resident_bytes() - before < 32 << 20
