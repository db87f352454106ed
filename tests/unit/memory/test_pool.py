"""The pool whole: rows that grow and end, steps of any length, and bytes that stay what they were."""

import random
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import OutOfMemoryError
from headrace.memory.budget import Budget, KVShape
from headrace.memory.kv_cache import PageOrder
from headrace.memory.pages import RowPages
from headrace.memory.pool import Pool

SHAPE = KVShape(num_layers=2, num_kv_heads=1, head_dim=4, page_size=4, element_bytes=4)
CHUNK_PAGES = 4
CHUNK_BYTES = CHUNK_PAGES * SHAPE.page_bytes  # 1 KiB


@dataclass(frozen=True)
class Each:
    first_op: int
    last_op: int
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.uint8


def make(num_chunks: int, order: PageOrder = "tokens", max_pages: int | None = None) -> Pool:
    pages = num_chunks * CHUNK_PAGES if max_pages is None else max_pages
    budget = Budget(num_chunks, CHUNK_PAGES, CHUNK_BYTES, pages, pages * SHAPE.page_size)
    return Pool(torch.zeros(budget.num_bytes, dtype=torch.uint8), budget, SHAPE, torch.float32, order=order)


def grow(pool: Pool, num_tokens: int) -> RowPages:
    row = RowPages(num_tokens)
    assert pool.pages.reserve(row, num_tokens) == num_tokens
    return row


def fill(pool: Pool, row: RowPages, value: int) -> None:
    for page in row.page_ids:
        content(pool, page).fill_(value)


def content(pool: Pool, page: int) -> torch.Tensor:
    return pool.kv_cache._tokens(page, SHAPE.page_size)


def test_a_long_step_takes_whole_chunks_of_pages_that_lie_about_and_every_row_keeps_its_content() -> None:
    pool = make(6)
    rows = [grow(pool, 4) for _ in range(24)]
    for number, row in enumerate(rows):
        fill(pool, row, number)
    for number in range(24):
        if number % 3:
            pool.pages.end(rows[number])
    assert pool.memory_info().num_free_chunks == 0
    before = [row.page_ids[0] for row in rows[::3]]
    assert pool.make_room("long", lambda: [Each(0, 1, (3 * CHUNK_BYTES,)), Each(1, 2, (CHUNK_BYTES,))])
    info = pool.memory_info()
    assert info.activation_bytes == 4 * CHUNK_BYTES
    assert info.num_shuffles >= 1
    for tensor in pool.workspace.place("shorter", lambda: [Each(0, 1, (2900,)), Each(1, 2, (1000,))]):
        tensor.fill_(255)
    assert 0 < info.num_moved_pages == sum(row.page_ids[0] != page for row, page in zip(rows[::3], before, strict=True))
    for number in range(0, 24, 3):
        assert content(pool, rows[number].page_ids[0]).eq(number).all()


@pytest.mark.parametrize("order", ["tokens", "heads"])
@settings(max_examples=60)
@given(seed=st.integers(0, 1 << 32))
def test_whatever_grows_ends_and_makes_room_no_byte_of_a_row_changes(order: PageOrder, seed: int) -> None:
    rng = random.Random(seed)
    pool = make(8, order, max_pages=rng.choice([32, 27]))
    rows: dict[int, RowPages] = {}
    for number in range(1, 80):
        action = rng.random()
        if action < 0.5:
            num_tokens = rng.randint(1, 24)
            row = RowPages(32)
            if pool.pages.reserve(row, num_tokens) == num_tokens:
                rows[number] = row
                fill(pool, row, number)
            else:
                pool.pages.end(row)
        elif action < 0.75 and rows:
            gone = rng.choice(list(rows))
            token_ids = [gone * 100 + i for i in range(32)]
            # Kept for later rows, or forgotten at once.
            if rng.random() < 0.5:
                pool.pages.record(rows[gone], token_ids, 4 * len(rows[gone].page_ids), with_last=False)
            pool.pages.end(rows.pop(gone))
        else:
            sizes = [rng.randint(1, 3 * CHUNK_BYTES) for _ in range(rng.randint(1, 3))]
            results = [Each(0, 5, (size,)) for size in sizes]
            free = pool.budget.num_chunks - -(-pool.pages.num_used // CHUNK_PAGES)
            fits = pool.make_room(tuple(sizes), partial(list, results))
            if sum(sizes) > free * CHUNK_BYTES:
                assert not fits
            if len(sizes) == 1 and -(-sizes[0] // CHUNK_BYTES) == 1 and free:
                assert fits, "one chunk can always be freed where enough pages are free"
            if fits:
                for tensor in pool.workspace.place(tuple(sizes), partial(list, results)):
                    tensor.fill_(rng.randrange(256))
        used = [page for row in rows.values() for page in row.page_ids]
        assert len(used) == len(set(used)) == pool.pages.num_used
        for number_of, row in rows.items():
            for page in row.page_ids:
                assert content(pool, page).eq(number_of).all()
        info = pool.memory_info()
        assert info.free_bytes + info.kv_bytes + info.activation_bytes == info.total_bytes
        assert info.used_page_bytes + info.kept_page_bytes <= info.kv_bytes


def test_kept_pages_go_before_a_step_goes_without_room_and_rows_never_do() -> None:
    pool = make(4)
    kept, used = grow(pool, 32), grow(pool, 32)
    pool.pages.record(kept, range(32), 32, with_last=False)
    pool.pages.end(kept)
    assert pool.pages.num_kept == 8
    assert pool.make_room(1, lambda: [Each(0, 1, (2 * CHUNK_BYTES,))])
    assert pool.pages.num_kept == 0
    assert not pool.make_room(2, lambda: [Each(0, 1, (3 * CHUNK_BYTES,))])
    assert pool.pages.num_used == len(used.page_ids) == 8


def test_a_prefix_is_found_where_it_moved_to() -> None:
    pool = make(4)
    others = [grow(pool, 4) for _ in range(3)]
    row = grow(pool, 4)
    rest = [grow(pool, 4) for _ in range(12)]
    fill(pool, row, 7)
    pool.pages.record(row, range(9), 4, with_last=False)
    for other in (*others, *rest[::2]):
        pool.pages.end(other)
    before = row.page_ids[0]
    assert pool.make_room(1, lambda: [Each(0, 1, (2 * CHUNK_BYTES,))])
    assert row.page_ids[0] != before
    pool.pages.end(row)
    late = RowPages(16)
    assert pool.pages.adopt(late, range(9), 0) == (4, None)
    assert content(pool, late.page_ids[0]).eq(7).all()


def test_memory_comes_back_when_a_long_step_is_long_ago() -> None:
    pool = make(8)
    assert pool.make_room("long", lambda: [Each(0, 1, (5 * CHUNK_BYTES,))])
    pool.workspace.place("long", lambda: [Each(0, 1, (5 * CHUNK_BYTES,))])
    assert pool.memory_info().num_free_chunks == 3
    for _ in range(300):
        assert pool.make_room("short", lambda: [Each(0, 1, (10,))])
        pool.workspace.place("short", lambda: [Each(0, 1, (10,))])
    assert pool.memory_info().num_free_chunks == 7


def test_a_kernel_keeps_its_workspace_and_several_share_a_chunk() -> None:
    pool = make(3)
    first, second = pool.workspace_for_good(300), pool.workspace_for_good(500)
    assert (first.nbytes, second.nbytes) == (300, 500)
    assert second.data_ptr() - first.data_ptr() == 512
    assert pool.memory_info().workspace_bytes == CHUNK_BYTES
    assert pool.workspace_for_good(2 * CHUNK_BYTES).nbytes == 2 * CHUNK_BYTES
    with pytest.raises(OutOfMemoryError, match="memory_fraction"):
        pool.workspace_for_good(1000)
