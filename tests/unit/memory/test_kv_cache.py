from pathlib import Path

import torch

from headrace.memory.extents import Extent
from headrace.memory.kv_cache import KVCache


def test_views_show_an_extent_of_each_layer_without_a_copy() -> None:
    cache = KVCache(num_layers=2, num_tokens=10, num_kv_heads=3, head_dim=4, dtype=torch.float32)
    cache.storage.zero_()
    views = cache.views(Extent(4, 5), 3)
    cache.layer(1)[0, 5, 2] = 7.0
    cache.layer(1)[1, 6, 0] = 8.0
    assert len(views) == 2
    keys, values = views[1]
    assert keys.shape == values.shape == (1, 3, 3, 4)
    assert keys[0, 2, 1].tolist() == [7.0] * 4
    assert values[0, 0, 2].tolist() == [8.0] * 4
    assert torch.stack([*views[0], keys, values]).sum() == 7.0 * 4 + 8.0 * 4


def test_memory_that_no_token_was_written_to_is_not_committed() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_bytes()
    cache = KVCache(num_layers=4, num_tokens=1 << 16, num_kv_heads=4, head_dim=64, dtype=torch.float32)
    assert cache.num_bytes == 512 << 20
    cache.layer(2)[:, :16] = 1.0
    assert resident_bytes() - before < 32 << 20
