from pathlib import Path

import pytest
import torch

from headrace.memory.kv_cache import KVCache, PageOrder
from headrace.memory.pages import PageCopy
from headrace.memory.shuffle import PageMove

ORDERS: list[PageOrder] = ["tokens", "heads"]


def make(order: PageOrder = "tokens", num_pages: int = 6, chunk_pages: int | None = None) -> KVCache:
    cache = KVCache(
        num_layers=2,
        num_pages=num_pages,
        page_size=2,
        num_kv_heads=3,
        head_dim=4,
        dtype=torch.float32,
        order=order,
        chunk_pages=chunk_pages,
    )
    cache.storage.zero_()
    return cache


def written(order: PageOrder, chunk_pages: int | None) -> tuple[KVCache, torch.Tensor]:
    """A memory in which every number is its own, and the same as ``[layer, side, page, offset, head, number]``."""
    cache = make(order, chunk_pages=chunk_pages)
    numbers = torch.arange(cache.storage.numel(), dtype=torch.float32).view(2, 2, 6, 2, 3, 4)
    for layer in range(2):
        if order == "heads":
            for side, part in enumerate(cache.paged(layer)):
                part.copy_(numbers[layer, side].transpose(1, 2))
        else:
            places = cache.places(torch.arange(12))
            cache.layers[layer].index_copy_(1, places, numbers[layer].flatten(1, 2))
    return cache, numbers


def read(cache: KVCache, order: PageOrder) -> torch.Tensor:
    if order == "heads":
        layers = [torch.stack([part.transpose(1, 2) for part in cache.paged(layer)]) for layer in range(2)]
        return torch.stack(layers)
    pages = [cache.views(2 * page, 2 * page + 2) for page in range(6)]
    sides = [[torch.stack([page[layer][side][0] for page in pages]) for side in range(2)] for layer in range(2)]
    return torch.stack([torch.stack(both) for both in sides]).transpose(3, 4)


@pytest.mark.parametrize("chunk_pages", [None, 1, 2, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_what_is_written_is_read_again_in_every_page_of_every_chunk(order: PageOrder, chunk_pages: int | None) -> None:
    cache, numbers = written(order, chunk_pages)
    assert torch.equal(read(cache, order), numbers)
    assert cache.storage.sort().values.eq(torch.arange(numbers.numel())).all()


@pytest.mark.parametrize("order", ORDERS)
def test_a_chunk_s_bytes_are_its_pages_and_nothing_else(order: PageOrder) -> None:
    cache, numbers = written(order, 2)
    cache.storage.view(3, -1)[1] = -1.0
    left = read(cache, order)
    assert left[:, :, 2:4].eq(-1).all()
    assert torch.equal(left[:, :, :2], numbers[:, :, :2])
    assert torch.equal(left[:, :, 4:], numbers[:, :, 4:])


@pytest.mark.parametrize("order", ORDERS)
def test_moved_pages_are_where_they_were_moved_to_in_all_layers(order: PageOrder) -> None:
    cache, numbers = written(order, 2)
    cache.move([PageMove(0, 4), PageMove(3, 1)])
    expected = numbers.clone()
    expected[:, :, [4, 1]] = numbers[:, :, [0, 3]]
    assert torch.equal(read(cache, order), expected)


def test_copies_that_build_on_each_other_are_handed_on_in_an_order_that_keeps_them_right() -> None:
    groups: list[list[list[int]]] = []

    def copy_pages(pages: torch.Tensor, moves: torch.Tensor) -> None:
        groups.append(moves.tolist())
        pages[0, moves[:, 1].long()] = pages[0, moves[:, 0].long()]

    plain = make("heads")
    unordered = KVCache(
        num_layers=2,
        num_pages=6,
        page_size=2,
        num_kv_heads=3,
        head_dim=4,
        dtype=torch.float32,
        order="heads",
        copy_pages=copy_pages,
    )
    plain.storage.normal_()
    unordered.storage.copy_(plain.storage)
    copies = [PageCopy(0, 1, 2), PageCopy(0, 2, 2), PageCopy(3, 3, 1), PageCopy(4, 0, 2), PageCopy(2, 5, 2)]
    plain.begin(copies)
    unordered.begin(copies)
    assert torch.equal(plain.storage, unordered.storage)
    assert groups == [[[0, 1], [0, 2]], [[4, 0], [2, 5]]]


def test_a_run_never_goes_on_in_the_next_chunk() -> None:
    with pytest.raises(ValueError, match="two chunks"):
        make(chunk_pages=2).views(2, 6)


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
def test_a_copy_takes_the_first_tokens_of_a_page_in_all_layers_and_nothing_else(order: PageOrder) -> None:
    cache, numbers = written(order, 2)
    cache.copy(1, 4, 1)
    numbers[:, :, 4, 0] = numbers[:, :, 1, 0]
    assert torch.equal(read(cache, order), numbers)


def test_memory_that_no_token_was_written_to_is_not_committed() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_bytes()
    cache = KVCache(num_layers=4, num_pages=1 << 12, page_size=16, num_kv_heads=4, head_dim=64, dtype=torch.float32)
    assert cache.num_bytes == 512 << 20
    cache.layers[2][:, :16] = 1.0
    assert resident_bytes() - before < 32 << 20
