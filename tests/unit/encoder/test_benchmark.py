from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.model.tiny_encoders import make_encoder

from headrace.errors import ConfigurationError
from headrace.kernels.encoder_reference import EncoderReference
from headrace.testing.state_dict import StateDict
from headrace.workers.costs.table import CostTable
from headrace.workers.encoder.benchmark import WAYS, Benchmark, Way, Window
from headrace.workers.encoder.loading import Encoder, build_encoder
from headrace.workers.encoder.profile import Limits, ProfiledEncoder

TABLE = CostTable.linear(1.0, 0.01, 512, 20)
CPU = torch.device("cpu")


def tiny(table: EncoderReference | ProfiledEncoder) -> Encoder:
    torch.set_num_threads(1)
    model = make_encoder("bert")
    tensors, config = model.state_dict(), model.config.to_dict() | {"architectures": ["BertModel"]}
    return build_encoder(config, StateDict(tensors), tensors, table, torch.float32)


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=60),
    way=st.sampled_from(WAYS),
    max_rows=st.integers(1, 20),
    max_tokens=st.integers(500, 4000),
)
def test_every_way_computes_every_row_within_its_limits(
    lengths: list[int], way: Way, max_rows: int, max_tokens: int
) -> None:
    batches = Window(tuple(lengths), max_rows, max_tokens).batches(way, TABLE)
    assert sum(map(len, batches)) == len(lengths)
    for batch in batches:
        assert sum(batch) <= max_tokens
        if way != "packed":
            assert len(set(batch)) == 1
            assert len(batch) <= max_rows
    if way in ("none", "packed"):
        assert Counter(length for batch in batches for length in batch) == Counter(lengths)
    # Nothing is computed that is shorter than what waits.
    padded = sorted(length for batch in batches for length in batch)
    assert all(computed >= waiting for computed, waiting in zip(padded, sorted(lengths), strict=True))


def test_less_is_padded_by_length_than_in_the_order_of_arrival_and_nothing_alone() -> None:
    window = Window((5, 100) * 20, 20, 1 << 20)
    computed = {way: sum(map(sum, window.batches(way, TABLE))) for way in WAYS}
    assert computed["none"] == computed["packed"] == computed["sorted"] == sum(window.lengths)
    assert computed["naive"] == 40 * 100


def test_a_seed_draws_the_same_window_within_its_range() -> None:
    drawn = Window.drawn(100, 5, 50, 0, max_rows=20, max_tokens=1000)
    assert drawn == Window.drawn(100, 5, 50, 0, max_rows=20, max_tokens=1000)
    assert (min(drawn.lengths), max(drawn.lengths)) == (5, 50)
    with pytest.raises(ConfigurationError, match="no window of 100 rows of 9 to 5 tokens"):
        Window.drawn(100, 9, 5, 0, max_rows=20, max_tokens=1000)


def test_costs_and_times_are_measured_by_computing() -> None:
    window = Window((3, 40, 12, 40), 2, 200)
    benchmark = Benchmark(tiny(EncoderReference()), repetitions=1)
    table = benchmark.costs(window)
    assert table.lengths[-1] == 40
    assert table.batch_sizes == (1, 2)
    assert table.cost(40, 2) > 0
    timed = benchmark.time(window, "naive", table)
    assert timed.num_batches == 2
    assert timed.padded_share == pytest.approx(1 - 95 / 160)
    assert timed.rows_per_s == pytest.approx(4 / (timed.ms / 1000))


def test_a_profile_names_every_operation_and_its_floor() -> None:
    table = ProfiledEncoder(EncoderReference(), CPU)
    encoder = tiny(table)
    batch = table.pack(torch.arange(20) + 6, torch.arange(20), None, [20])
    with torch.inference_mode():
        table.pool(encoder.model.forward(batch), batch, "mean", normalise=True)
    found = {each.name: each for each in table.report(Limits(flops_per_us=1e3, bytes_per_us=1e9))}
    assert list(found) == [
        "embed", "product 48 to 144", "attention", "product 48 to 48", "add and norm", "product 48 to 96", "gelu",
        "product 96 to 48", "pool mean",
    ]  # fmt: skip
    assert found["add and norm"].calls == 6
    assert found["product 48 to 144"].floor_us == pytest.approx(2 * 20 * 48 * 144 / 1e3)
    assert found["attention"].floor_us == pytest.approx(4 * 48 * 20 * 20 / 1e3)
    assert sum(each.share for each in found.values()) == pytest.approx(1)
    assert not table.report(Limits(1, 1)), "what was reported is forgotten"
