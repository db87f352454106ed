"""A pool under churn: what it costs to free whole chunks when pages lie about.

Rows of random lengths come and end until the pool is as full as it is to be; then one to four chunks more than are free
are wanted again and again, and rows go on coming and ending between. Keys and values have the shape of an 8B model (32
layers, 8 heads of 128, bf16). The pages' content is checked in the end.
"""

import random
import time
from collections.abc import Iterable
from statistics import mean

import torch
from torch import Tensor

from headrace.memory import shuffle
from headrace.memory.budget import KVShape, Needs, fill
from headrace.memory.pages import RowPages
from headrace.memory.pool import Pool
from headrace.memory.shuffle import PageMove
from headrace.testing.rows import Report, arguments

NUM_SHUFFLES = 60
PAGE_SIZE = 16
CASES = {"half_full": 0.5, "four_fifths_full": 0.8, "nineteen_twentieths_full": 0.95}


def make_pool(num_bytes: int) -> Pool:
    shape = KVShape(32, 8, 128, PAGE_SIZE, 2)
    budget = fill(shape, Needs(4096, 0, 0), num_bytes)
    if not torch.cuda.is_available():
        return Pool(torch.empty(budget.num_bytes, dtype=torch.uint8), budget, shape, torch.bfloat16, order="heads")
    # Not before: a machine without a GPU has no PyCUDA.
    from headrace.kernels.device_memory import allocate
    from headrace.kernels.page_copy import copy_pages

    storage = allocate(torch.cuda.current_device(), budget.num_bytes)
    pool = Pool(storage, budget, shape, torch.bfloat16, order="heads", copy_pages=copy_pages)
    # The first copy compiles.
    pool.kv_cache.move([PageMove(0, 1)])
    return pool


class Churn:
    """Rows that come and end."""

    def __init__(self, pool: Pool, fullness: float) -> None:
        self.pool = pool
        self.num_wanted = int(fullness * pool.budget.max_pages)
        self.rows: dict[int, RowPages] = {}
        self._rng = random.Random(0)
        self._num_rows = 0

    def go_on(self, num_ends: int) -> None:
        """End some rows, and let others come until the pool is full again."""
        for number in self._rng.sample(sorted(self.rows), min(num_ends, len(self.rows))):
            self.pool.pages.end(self.rows.pop(number))
        while self.pool.pages.num_used < self.num_wanted:
            # Mostly short, seldom long: what people ask for.
            num_tokens = min(8192, int(self._rng.lognormvariate(6.0, 1.0)) + 1)
            row = RowPages(num_tokens)
            if self.pool.pages.reserve(row, num_tokens) < num_tokens:
                self.pool.pages.end(row)
                return
            self._num_rows += 1
            self.rows[self._num_rows] = row
            for page in row.page_ids:
                self.tag(page).fill_(self._num_rows % 128)

    def tag(self, page: int) -> Tensor:
        """A few numbers all over a page, by which it is known again."""
        return self.pool.kv_cache.storage.view(-1, self.pool.kv_cache.page_bytes // 2)[page, ::4096]

    def check(self) -> None:
        for number, row in self.rows.items():
            for page in row.page_ids:
                if not self.tag(page).eq(number % 128).all():
                    raise SystemExit(f"page {page} of row {number} has lost its content")


def measure(report: Report, case: str, num_bytes: int, fullness: float) -> None:
    pool = make_pool(num_bytes)
    churn = Churn(pool, fullness)
    for _ in range(40):
        churn.go_on(len(churn.rows) // 4)
    rng = random.Random(1)
    times_ms, moved, freed, all_moved = [], [], [], []
    for _ in range(100 * NUM_SHUFFLES):
        churn.go_on(len(churn.rows) // 3 + 1)
        num_free = pool.memory_info().num_free_chunks
        num_free_pages = pool.budget.max_pages - pool.pages.num_used
        num_chunks = min(rng.randint(1, 4), num_free_pages // pool.budget.chunk_pages - num_free)
        if num_chunks < 1:
            continue  # they lie together as well as they can
        everything = fewest_to_free_all(pool, churn.rows.values())
        num_moved = pool.memory_info().num_moved_pages
        synchronize()
        start_s = time.perf_counter()
        fits = pool.free_chunks(num_free + num_chunks, adjacent=False)
        synchronize()
        if not fits:
            raise SystemExit("chunks were not freed, though enough pages are free")
        times_ms.append((time.perf_counter() - start_s) * 1e3)
        moved.append(pool.memory_info().num_moved_pages - num_moved)
        freed.append((pool.memory_info().num_free_chunks - num_free) * pool.budget.chunk_bytes)
        all_moved.append(everything)
        if len(times_ms) == NUM_SHUFFLES:
            break
    else:
        raise SystemExit(f"{case}: pages hardly ever lie about: raise --gib")
    churn.check()
    report.add(case, "time", mean(times_ms), "ms")
    report.add(case, "worst_time", max(times_ms), "ms")
    peer = "freeing every chunk"
    report.add(case, "moved_pages", mean(moved), "pages", peer=peer, peer_value=mean(all_moved))
    report.add(case, "freed_bytes", mean(freed) / 2**20, "MiB")
    page_bytes = pool.kv_cache.page_bytes
    saved = mean(every - own for every, own in zip(all_moved, moved, strict=True)) * page_bytes
    report.add(case, "copies_saved", saved / 2**20, "MiB")
    copied = 2 * sum(moved) * page_bytes
    report.add(case, "bandwidth", copied / sum(times_ms) / 1e6, "GB/s")


def fewest_to_free_all(pool: Pool, rows: Iterable[RowPages]) -> int:
    """Pages that would move if all pages were put together."""
    used = [0] * pool.budget.num_chunks
    for row in rows:
        for page in row.page_ids:
            used[page // pool.budget.chunk_pages] += 1
    num_needed = -(-sum(used) // pool.budget.chunk_pages)
    chosen = shuffle.choose(used, pool.budget.chunk_pages, pool.budget.num_chunks - num_needed)
    return sum(used[chunk] for chunk in chosen or ())


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    default = 4 if torch.cuda.is_available() else 2
    wanted = arguments(__doc__ or "", [("gib", default, "size of the pool")])
    report = Report("scripts/bench/shuffle.py", saves=wanted.save)
    for name, fullness in CASES.items():
        measure(report, f"memory/shuffle/{name}", wanted.gib << 30, fullness)
    report.finish(save=wanted.save)


if __name__ == "__main__":
    main()
