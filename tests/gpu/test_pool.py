"""The pool on a GPU: PyCUDA's memory under torch's tensors and our kernels, and pages that move on the device."""

import gc
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from tests.gpu.tolerance import assert_fair, poisoned

from headrace.errors import ConfigurationError
from headrace.kernels import reference_attention
from headrace.kernels.decode_attention import DecodeAttention
from headrace.kernels.decode_shape import DecodeShape
from headrace.kernels.device_memory import allocate, free_bytes
from headrace.kernels.kv_pages import KVPages
from headrace.kernels.page_copy import copy_pages
from headrace.memory.budget import Budget, KVShape, Needs, available_bytes, fill
from headrace.memory.kv_cache import KVCache
from headrace.memory.pages import PageCopy, RowPages
from headrace.memory.pool import Pool
from headrace.testing.gpu_memory import watch_torch

SHAPE = KVShape(num_layers=3, num_kv_heads=2, head_dim=64, page_size=64, element_bytes=2)
CHUNK_PAGES = 8
NUM_CHUNKS = 12
CHUNK_BYTES = CHUNK_PAGES * SHAPE.page_bytes


class Each:
    """A result of bytes that lives through operations 0 and 1."""

    first_op, last_op, dtype = 0, 1, torch.uint8

    def __init__(self, num_bytes: int) -> None:
        self.shape = (num_bytes,)


def make(device: torch.device, num_chunks: int) -> Pool:
    pages = num_chunks * CHUNK_PAGES
    budget = Budget(num_chunks, CHUNK_PAGES, CHUNK_BYTES, pages, pages * SHAPE.page_size)
    storage = allocate(device.index, budget.num_bytes)
    # Every number is NaN until it is written: whoever reads what nobody wrote is found out.
    storage.fill_(255)
    return Pool(storage, budget, SHAPE, torch.bfloat16, order="heads", copy_pages=copy_pages)


def test_memory_from_pycuda_is_a_tensor_that_torch_knows_and_has_not_allocated(device: torch.device) -> None:
    with watch_torch(device) as watched:
        storage = allocate(device.index, 64 << 20)
    assert (watched.num_allocations, watched.grown_bytes) == (0, 0)
    assert (storage.device, storage.dtype, storage.nbytes) == (device, torch.uint8, 64 << 20)
    assert storage.data_ptr() % 512 == 0
    numbers = storage.view(torch.float32)
    numbers.normal_()
    assert torch.equal(numbers.cpu(), numbers.clone().cpu())
    assert (numbers[:4096].view(64, 64) @ numbers[4096:8192].view(64, 64)).isfinite().all()


@pytest.mark.alone
def test_memory_goes_back_when_nobody_refers_to_it(device: torch.device) -> None:
    before = free_bytes(device.index)
    storage = allocate(device.index, 1 << 30)
    assert before - free_bytes(device.index) >= 1 << 30
    view = storage[: 1 << 20]
    del storage
    gc.collect()
    assert before - free_bytes(device.index) >= 1 << 30, "a view keeps it"
    del view
    gc.collect()
    assert before - free_bytes(device.index) < 64 << 20


@pytest.mark.alone
def test_memory_goes_back_whichever_thread_collects_its_dead_owner(device: torch.device) -> None:
    before = free_bytes(device.index)
    gc.disable()  # or this thread might come first
    try:
        owner: list[object] = [allocate(device.index, 1 << 30)]
        owner.append(owner)
        del owner
        assert before - free_bytes(device.index) >= 1 << 30
        with ThreadPoolExecutor(1) as other:
            other.submit(gc.collect).result()
    finally:
        gc.enable()
    assert before - free_bytes(device.index) < 64 << 20


def test_more_than_there_is_is_refused_with_the_setting_to_change(device: torch.device) -> None:
    with pytest.raises(ConfigurationError, match="memory_fraction"):
        allocate(device.index, 1 << 45)


@pytest.mark.alone
def test_a_pool_takes_what_is_left_and_leaves_the_reserve(device: torch.device) -> None:
    weights = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    free = free_bytes(device.index)
    num_bytes = available_bytes(free, weights.nbytes, 0.5, 1 << 30)
    budget = fill(SHAPE, Needs(8192, 256 << 20, 1 << 20), num_bytes)
    storage = allocate(device.index, budget.num_bytes)
    assert free - free_bytes(device.index) >= budget.num_bytes
    assert free_bytes(device.index) >= (free + weights.nbytes) // 2 - (64 << 20)
    assert storage.nbytes == budget.num_bytes


class Rows:
    """Rows of random lengths that lie about in a pool."""

    def __init__(self, pool: Pool, device: torch.device) -> None:
        rng = random.Random(0)
        rows = [(RowPages(640), rng.randint(1, 150)) for _ in range(40)]
        for row, length in rows:
            assert pool.pages.reserve(row, length) == length
        for row, _ in rows[1::2]:
            pool.pages.end(row)
        self.rows = [row for row, _ in rows[::2]]
        self.lengths = torch.tensor([length for _, length in rows[::2]], dtype=torch.int32, device=device)
        for row in self.rows:
            for layer in range(SHAPE.num_layers):
                for part in pool.kv_cache.paged(layer):
                    content = torch.randn(len(row.page_ids), 2, 64, 64, device=device)
                    part[row.page_ids] = content.to(torch.bfloat16)

    def table(self) -> torch.Tensor:
        """Where the rows' pages lie now, int32 ``[num_rows, 10]``."""
        table = torch.full((len(self.rows), 10), -1, dtype=torch.int32)
        for place, row in enumerate(self.rows):
            table[place, : len(row.page_ids)] = torch.tensor(row.page_ids)
        return table.to(self.lengths.device)


def test_attention_reads_pages_of_every_chunk_before_and_after_they_move(device: torch.device) -> None:
    pool = make(device, NUM_CHUNKS)
    rows = Rows(pool, device)
    shape = DecodeShape(2, 4, 64, torch.bfloat16, max_rows=len(rows.rows), max_pages=10, page_size=64)
    workspace = pool.workspace_for_good(DecodeAttention.workspace_bytes(shape, device))
    attention = DecodeAttention(shape, device, workspace)
    queries = torch.randn(SHAPE.num_layers, len(rows.rows), 8, 64, device=device, dtype=torch.bfloat16)

    def contents() -> list[torch.Tensor]:
        layers = range(SHAPE.num_layers)
        return [part[row.page_ids] for row in rows.rows for layer in layers for part in pool.kv_cache.paged(layer)]

    def check() -> None:
        attention.plan(rows.lengths)
        for layer, query in enumerate(queries):
            pages = KVPages(*pool.kv_cache.paged(layer), rows.table())
            exact = KVPages(pages.keys.double(), pages.values.double(), pages.page_table)
            out = poisoned(query)
            attention.run(out, query, pages, rows.lengths)
            truth = reference_attention.decode_attention(query.double(), exact, rows.lengths)
            assert_fair(out, truth, reference_attention.decode_attention(query, pages, rows.lengths))

    check()
    before = contents()
    num_chunks = pool.memory_info().num_free_chunks + 2
    assert pool.make_room("long", partial(list, [Each(num_chunks * CHUNK_BYTES)]))
    assert pool.memory_info().num_moved_pages > 0
    for tensor in pool.workspace.place("long", partial(list, [Each(num_chunks * CHUNK_BYTES)])):
        tensor.fill_(255)
    assert all(torch.equal(*both) for both in zip(contents(), before, strict=True))
    check()


def test_pages_begun_as_copies_are_the_same_as_on_the_host(device: torch.device) -> None:
    make_cache = partial(
        KVCache,
        num_layers=3,
        num_pages=8,
        page_size=16,
        num_kv_heads=2,
        head_dim=64,
        dtype=torch.bfloat16,
        order="heads",
    )
    theirs = make_cache()
    theirs.storage.normal_()
    ours = make_cache(storage=allocate(device.index, theirs.num_bytes), copy_pages=copy_pages)
    ours.storage.copy_(theirs.storage)
    copies = [PageCopy(0, 1, 16), PageCopy(0, 2, 16), PageCopy(3, 3, 5), PageCopy(4, 0, 16), PageCopy(2, 5, 16)]
    ours.begin(copies)
    theirs.begin(copies)
    assert torch.equal(ours.storage.cpu(), theirs.storage)


def test_steps_of_lengths_seen_before_allocate_nothing(device: torch.device) -> None:
    pool = make(device, 12)
    lengths = [1, 7, 64, 200, 7, 1]

    def steps() -> None:
        for length in lengths:
            results = [Each(length * 4096)]
            assert pool.make_room(length, partial(list, results))
            for tensor in pool.workspace.place(length, partial(list, results)):
                tensor.fill_(length % 7)

    steps()
    with watch_torch(device) as watched:
        steps()
    assert (watched.num_allocations, watched.grown_bytes) == (0, 0)
