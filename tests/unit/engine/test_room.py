"""Room for activations: what is spared first, and what last."""

import torch

from headrace.job import SamplingParams
from headrace.kernels.planned_steps import Place
from headrace.kernels.step_trace import Result
from headrace.memory.budget import Budget, KVShape
from headrace.memory.pool import Pool
from headrace.workers.engine.fusion import Fusion
from headrace.workers.engine.room import Room
from headrace.workers.engine.sequence import Sequence

SHAPE = KVShape(num_layers=1, num_kv_heads=1, head_dim=8, page_size=4, element_bytes=4)
CHUNK_PAGES = 4
TOKENS_OF_A_CHUNK = 16
BYTES_OF_A_TOKEN = 64  # of activations; as many as keys and values take


class Operations:
    """Steps that write one result."""

    def place_in(self, place: Place) -> None:
        self.place = place

    def knows(self, num_sampled: int) -> bool:
        return True

    def results(self, num_tokens: int, num_sampled: int) -> list[Result]:
        return [Result(0, 0, (num_tokens, BYTES_OF_A_TOKEN), torch.uint8)]


class Engine:
    """Plans and settles, and computes nothing."""

    def __init__(self, num_chunks: int, max_rows: int, step_tokens: int) -> None:
        num_pages = num_chunks * CHUNK_PAGES
        budget = Budget(num_chunks, CHUNK_PAGES, CHUNK_PAGES * SHAPE.page_bytes, num_pages, num_pages * 4)
        self.pool = Pool(torch.zeros(budget.num_bytes, dtype=torch.uint8), budget, SHAPE, torch.float32)
        self.operations = Operations()
        self.room = Room(self.pool, self.operations)
        self.fusion = Fusion(self.pool.pages, max_rows=max_rows, step_tokens=step_tokens)

    def add(self, row: int, num_prompt: int, max_tokens: int) -> None:
        params = SamplingParams(max_tokens, 0, 0.0, 0, 1.0, 0.0, 0, (), (), True)
        self.fusion.add(Sequence(row, tuple(range(100 * row, 100 * row + num_prompt)), (), params, frozenset()))

    def step(self) -> int:
        """Go on by a step: the number of its tokens, for which there was room."""
        plan = self.room.plan(self.fusion)
        num_tokens = sum(chunk.num_tokens for chunk in plan.chunks)
        lengths = num_tokens, sum(chunk.samples for chunk in plan.chunks)
        (tensor,) = self.operations.place(lengths, lambda: self.operations.results(*lengths))
        assert tensor.shape == (num_tokens, BYTES_OF_A_TOKEN)
        sampling = [chunk.sequence for chunk in plan.chunks if chunk.samples]
        self.fusion.advance(plan)
        for sequence in sampling:
            sequence.num_pending -= 1
            sequence.token_ids.append(7)
        self.fusion.remove(s.row for s in sampling if s.num_output_tokens >= s.params.max_tokens)
        return num_tokens


def test_a_step_that_would_not_fit_becomes_shorter_and_the_row_ends() -> None:
    engine = Engine(num_chunks=4, max_rows=1, step_tokens=64)
    engine.add(1, num_prompt=40, max_tokens=4)
    num_tokens = []
    while engine.fusion.has_rows:
        num_tokens.append(engine.step())
    # 40 tokens of keys and values are three chunks, hence one is left for a step.
    assert max(num_tokens) <= 2 * TOKENS_OF_A_CHUNK
    assert sum(num_tokens) == 43


def test_the_youngest_row_gives_way_to_a_step_and_every_row_ends() -> None:
    engine = Engine(num_chunks=5, max_rows=4, step_tokens=32)
    for row in range(1, 5):
        engine.add(row, num_prompt=20, max_tokens=12)
    for _ in range(500):
        if not engine.fusion.has_rows:
            break
        engine.step()
    assert not engine.fusion.has_rows
    assert engine.fusion.num_preemptions > 0
    assert engine.pool.pages.num_used == 0


def test_what_is_kept_for_rows_to_come_goes_before_any_row() -> None:
    engine = Engine(num_chunks=4, max_rows=1, step_tokens=16)
    engine.add(1, num_prompt=44, max_tokens=1)
    while engine.fusion.has_rows:
        engine.step()
    kept = engine.pool.pages.num_kept
    assert kept == 11
    engine.add(2, num_prompt=30, max_tokens=1)
    while engine.fusion.has_rows:
        engine.step()
    assert engine.fusion.num_preemptions == 0
