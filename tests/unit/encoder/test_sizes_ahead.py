"""Sizes are captured before texts ask for them, each once, and as many as are kept."""

from dataclasses import dataclass, field

from headrace.config import Settings
from headrace.kernels.cuda_encoder_batch import MOST_PADDED_TOKENS, PaddedSize, padded_size
from headrace.kernels.encoder_graphs import WayCosts
from headrace.workers.encoder.runtimes import MAX_GRAPHS
from headrace.workers.encoder.sizes_ahead import captured_sizes, sizes_ahead
from headrace.workers.engine.settings import EngineSettings


@dataclass
class Runtime:
    uses_graphs: bool = True
    max_graphs: int = 336
    costs: dict[PaddedSize, WayCosts] = field(default_factory=dict)


def size_of(lengths: list[int]) -> PaddedSize:
    size = padded_size(sum(lengths), len(lengths))
    assert size is not None
    return size


def test_every_size_of_batches_up_to_64_rows_is_met_once() -> None:
    batches = captured_sizes(512)
    sizes = [size_of(lengths) for lengths in batches]
    assert all(0 < length <= 512 for lengths in batches for length in lengths)
    assert len(set(sizes)) == len(sizes)
    windows = [[5], [500] * 8, [3] * 9, [100] * 20, [480] * 20, [256] * 64]
    assert {size_of(lengths) for lengths in windows} <= set(sizes)


def test_by_default_there_is_room_for_a_graph_of_every_size() -> None:
    rows = (1, 8, 9, 64, 65, 512)
    sizes = {padded_size(tokens, num) for num in rows for tokens in range(1, MOST_PADDED_TOKENS + 1)}
    kept = Settings.model_fields["encoder_graphs"].default
    assert len(sizes) == kept == MAX_GRAPHS == EngineSettings.__dataclass_fields__["encoder_graphs"].default


def test_what_texts_have_captured_meanwhile_is_left_out() -> None:
    runtime = Runtime()
    ahead = sizes_ahead(runtime, 512, MOST_PADDED_TOKENS)
    first = list(next(ahead))
    for size in [size_of(lengths) for lengths in captured_sizes(512)[1:]][:-1]:
        runtime.costs[size] = WayCosts(1.0, 2.0)
    (last,) = ahead
    assert [first, list(last)] == [captured_sizes(512)[0], captured_sizes(512)[-1]]


def capture_ahead(runtime: Runtime) -> list[PaddedSize]:
    """The sizes that are captured when nobody asks for anything, in their order."""
    captured = []
    for lengths in sizes_ahead(runtime, 512, MOST_PADDED_TOKENS):
        captured.append(size_of(list(lengths)))
        runtime.costs[captured[-1]] = WayCosts(1.0, 2.0)
    return captured


def test_no_more_sizes_are_captured_than_are_kept_or_computed_at_once() -> None:
    assert capture_ahead(Runtime(max_graphs=5)) == [size_of(lengths) for lengths in captured_sizes(512)[:5]]
    assert max(map(sum, sizes_ahead(Runtime(), 512, 2_048))) == 2_048
    assert not list(sizes_ahead(Runtime(uses_graphs=False), 512, MOST_PADDED_TOKENS))


def test_sizes_that_texts_have_captured_are_not_given_up_for_others() -> None:
    runtime = Runtime(max_graphs=5)
    for lengths in captured_sizes(512)[-3:]:
        runtime.costs[size_of(lengths)] = WayCosts(1.0, 2.0)
    assert len(capture_ahead(runtime)) == 2
