"""Which steps with prompts are captured, and to which sizes they are rounded up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from headrace.testing.plain_params import plain_params
from headrace.workers.engine.padded_size import PaddedSize
from headrace.workers.engine.plan import Chunk
from headrace.workers.engine.prompt_graphs import PromptGraphs
from headrace.workers.engine.sequence import Sequence


def chunk(row: int, num_tokens: int, *, samples: bool) -> Chunk:
    sequence = Sequence(row, (0,) * num_tokens, (), plain_params(2), frozenset())
    return Chunk(sequence, 0, num_tokens, samples, num_tokens > 1)


@given(
    num_decoding=st.integers(0, 40),
    prompts=st.lists(st.tuples(st.integers(2, 900), st.booleans()), min_size=1, max_size=20),
    spare=st.integers(0, 100),
)
def test_a_step_fits_the_size_that_it_is_rounded_up_to_and_little_is_added(
    num_decoding: int, prompts: list[tuple[int, bool]], spare: int
) -> None:
    chunks = [chunk(row, 1, samples=True) for row in range(num_decoding)]
    chunks += [chunk(100 + row, length, samples=samples) for row, (length, samples) in enumerate(prompts)]
    places = list(range(spare, spare + len(chunks)))
    size = PaddedSize.of(chunks, places, max_places=200)
    num_tokens = sum(length for length, _ in prompts)
    assert num_tokens <= size.num_tokens < max(65, num_tokens + 128)
    assert max(places) < size.num_places <= 200
    assert len(prompts) <= size.num_chunks <= size.num_places
    assert size.decodes == (num_decoding > 0)
    assert size.samples == (num_decoding > 0 or any(samples for _, samples in prompts))
    assert size.lengths == (size.num_places * size.decodes + size.num_tokens, size.num_places * size.samples)


class Graph:
    """A graph that only counts."""

    def __init__(self) -> None:
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PromptGraphs]:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda keep_graph: CapturedGraph())
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: graph)

    def of(lay_out: Callable[[tuple[int, int]], Any], max_graphs: int = 2) -> PromptGraphs:
        stream: Any = Stream()
        return PromptGraphs(stream, lay_out, max_graphs)

    return of


class Stream:
    device = torch.device("cpu")


class CapturedGraph(Graph):
    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def instantiate(self) -> None: ...


SIZE = PaddedSize(8, 512, 8, decodes=True, samples=True)


def test_only_steps_that_wait_for_the_host_are_served(make: Callable[..., PromptGraphs]) -> None:
    graphs = make(lambda lengths: ())
    long = PaddedSize(8, 1 << 20, 8, decodes=True, samples=True)
    busy = PaddedSize(8, 1024, 8, decodes=True, samples=True)
    graphs.observe(busy, launch_ms=900.0, step_ms=1000.0)  # it compiled, which says nothing
    for _ in range(2):
        graphs.observe(busy, launch_ms=4.0, step_ms=12.0)
        graphs.observe(busy, launch_ms=90.0, step_ms=95.0)  # the host was held up, which says nothing either
        graphs.observe(busy, launch_ms=4.0, step_ms=12.0)
        graphs.observe(long, launch_ms=4.0, step_ms=4.1)
        assert not graphs.serves(SIZE)
        graphs.observe(SIZE, launch_ms=4.0, step_ms=4.1)
    assert graphs.serves(SIZE)
    assert not graphs.serves(long)
    assert not graphs.serves(busy)
    for _ in range(2):
        graphs.observe(PaddedSize(16, 512, 8, decodes=True, samples=True), launch_ms=4.0, step_ms=4.0)
        graphs.observe(PaddedSize(32, 512, 8, decodes=True, samples=True), launch_ms=4.0, step_ms=4.0)
    assert not graphs.serves(SIZE)  # the one asked for longest ago


def test_a_host_that_launches_more_slowly_than_it_once_did_is_waited_for_too(make: Callable[..., PromptGraphs]) -> None:
    graphs = make(lambda lengths: ())
    other = PaddedSize(16, 512, 8, decodes=True, samples=True)
    for _ in range(4):
        graphs.observe(other, launch_ms=4.0, step_ms=8.0)
    assert not graphs.serves(other)
    for _ in range(8):
        graphs.observe(SIZE, launch_ms=9.0, step_ms=10.0)
    assert graphs.serves(SIZE)


def test_a_key_is_captured_once_and_anew_when_its_results_lie_elsewhere(make: Callable[..., PromptGraphs]) -> None:
    layouts: list[tuple[Tensor, ...]] = [(torch.zeros(1),)]
    graphs, launched = make(lambda lengths: layouts[-1]), []
    for _ in range(4):
        graphs.observe(SIZE, launch_ms=4.0, step_ms=4.0)

    def launch() -> Tensor:
        launched.append(1)
        return torch.full((1,), float(len(launched)))

    def run(draws: str) -> float:
        logits = graphs.run((SIZE, draws), launch)
        assert logits is not None
        return float(logits)

    # Launched, and captured behind it; what the capture gives back is where replays write.
    assert [run("greedy") for _ in range(4)] == [1.0, 2.0, 2.0, 2.0]
    assert run("drawn") == 3.0
    layouts.append((torch.zeros(1),))
    assert [run("greedy") for _ in range(2)] == [5.0, 6.0]
    assert len(launched) == 6


def test_sizes_that_come_by_turns_and_are_too_many_are_not_captured_for_ever(
    make: Callable[..., PromptGraphs],
) -> None:
    layout = (torch.zeros(1),)
    graphs, launched = make(lambda lengths: layout, max_graphs=2), []
    for _ in range(4):
        graphs.observe(SIZE, launch_ms=4.0, step_ms=4.0)
    for _ in range(10):
        for draws in "abc":
            graphs.run((SIZE, draws), lambda: launched.append(1))
    # A launch a step that is not replayed, and one a capture.
    assert len(launched) == 30 - graphs.num_replays + graphs.num_captures
    assert 0 < graphs.num_captures <= 2 + graphs.num_replays / 4
