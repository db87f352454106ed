"""How decode attention's work is shared out, without a GPU: the plan kernel's own source on fibers."""

import ctypes
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.emulation.build import build_decode_plan, compiler, pointer

TILE_KEYS = 16


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if compiler() is None:
        pytest.fail("the kernels' sources are run on this machine's CPU, which takes g++: install it")
    folder: Path = tmp_path_factory.mktemp("decode_plan")
    return build_decode_plan(folder)


class Plan:
    """A plan, and the units of each item that its shares cover, walked as ``decode_walk.cuh`` walks."""

    def __init__(
        self,
        library: ctypes.CDLL,
        lengths: list[int],
        num_kv_heads: int,
        num_shares: int,
        least_units: int,
        whole_units: int,
        segment_tiles: int,
        window: int,
    ) -> None:
        num_rows = len(lengths)
        self.num_blocks = max(num_shares, num_rows * num_kv_heads) if whole_units > 0 else num_shares
        plan = torch.full((1 + 2 * self.num_blocks, 4), -7, dtype=torch.int32)
        starts = torch.full((num_rows + 1,), -7, dtype=torch.int32)
        given_lengths = torch.tensor(lengths, dtype=torch.int32)
        library.emulate_decode_plan(
            *(pointer(plan), pointer(starts), pointer(given_lengths), num_rows, num_kv_heads, window),
            *(num_shares, self.num_blocks, least_units, whole_units, segment_tiles),
        )
        self.share, self.unit_tiles, self.apart, self.aligned = plan[0].tolist()
        self.entries = [
            [*entry, length] for entry, (length, *_) in zip(plan[1::2].tolist(), plan[2::2].tolist(), strict=True)
        ]
        self.lengths, self.num_kv_heads, self.window = lengths, num_kv_heads, window

    def units(self, row: int) -> int:
        length = self.lengths[row]
        first = max(length - self.window, 0) // TILE_KEYS if self.window else 0
        num_units: int = -(-(-(-length // TILE_KEYS) - first) // self.unit_tiles)
        return num_units

    def covered(self) -> list[tuple[int, int, int]]:
        """(row, head, unit) of each share's units, in order."""
        found = []
        for row, head, unit, left, length in self.entries:
            assert left == 0 or length == self.lengths[row]
            for _ in range(left):
                if unit == self.units(row):
                    unit, head = 0, head + 1
                    if head == self.num_kv_heads:
                        head, row = 0, row + 1
                        while self.lengths[row] == 0:
                            row += 1
                found.append((row, head, unit))
                unit += 1
        return found

    def expected(self) -> list[tuple[int, int, int]]:
        return [
            (row, head, unit)
            for row in range(len(self.lengths))
            for head in range(self.num_kv_heads)
            for unit in range(self.units(row))
        ]


@given(
    lengths=st.lists(st.just(0) | st.integers(1, 40) | st.integers(1, 3000), min_size=1, max_size=40),
    num_kv_heads=st.integers(1, 9),
    num_shares=st.integers(1, 400),
    least_units=st.integers(1, 20),
    whole_units=st.sampled_from((0, 1, 16, 32)),
    segment_tiles=st.sampled_from((0, 0, 0, 1, 8)),
    window=st.sampled_from((0, 0, 1, 100)),
)
@settings(max_examples=30)
def test_every_unit_is_in_one_share(
    library: ctypes.CDLL,
    lengths: list[int],
    num_kv_heads: int,
    num_shares: int,
    least_units: int,
    whole_units: int,
    segment_tiles: int,
    window: int,
) -> None:
    plan = Plan(library, lengths, num_kv_heads, num_shares, least_units, whole_units, segment_tiles, window)
    assert plan.covered() == plan.expected()
    split = [entry for entry in plan.entries if entry[3]]
    if plan.aligned:
        # No share goes beyond an item, and an item's shares are neighbours of equal size but for the last.
        for row, _, unit, left, _ in split:
            assert unit % plan.share == 0
            assert left == min(plan.share, plan.units(row) - unit)
    else:
        assert len(split) <= num_shares
    # Slots are two a share: a cut item's shares are among the first.
    if plan.aligned and any(left < plan.units(row) for row, _, _, left, _ in split):
        assert len(split) <= num_shares


# Several blocks that each write a part; more rows than threads; more than shared memory holds.
@pytest.mark.parametrize("num_rows", [300, 600, 4100])
@pytest.mark.parametrize("whole_units", [0, 32])
def test_every_unit_of_many_rows_is_in_one_share(library: ctypes.CDLL, num_rows: int, whole_units: int) -> None:
    lengths = [7 * row % 90 for row in range(num_rows)]
    plan = Plan(library, lengths, 8, 396, 16, whole_units, 0, 0)
    assert plan.aligned == bool(whole_units)
    assert plan.covered() == plan.expected()


def test_short_items_stay_whole_though_there_are_more_than_shares(library: ctypes.CDLL) -> None:
    plan = Plan(library, [208] * 64, 8, 396, 16, 32, 0, 0)
    assert plan.aligned
    assert [entry[3] for entry in plan.entries] == [13] * 512


def test_one_long_row_is_spread_over_all_shares(library: ctypes.CDLL) -> None:
    plan = Plan(library, [32000], 8, 396, 16, 32, 0, 0)
    assert sum(entry[3] > 0 for entry in plan.entries) >= 0.9 * 396


def test_equal_rows_are_cut_where_each_begins_a_share(library: ctypes.CDLL) -> None:
    plan = Plan(library, [1000] * 8, 8, 396, 8, 32, 0, 0)
    assert plan.aligned
    assert max(entry[3] for entry in plan.entries) <= -(-63 // (396 // 64)) + 1


@pytest.mark.parametrize(
    ("num_rows", "length", "aligned", "share"),
    [(8, 16000, True, 167), (8, 32000, False, 324), (5, 32000, False, 203), (10, 16000, False, 203)],
)
def test_rows_are_not_cut_where_each_begins_if_shares_became_much_longer(
    library: ctypes.CDLL, num_rows: int, length: int, aligned: bool, share: int
) -> None:
    plan = Plan(library, [length] * num_rows, 8, 396, 16, 32, 0, 0)
    assert (plan.aligned, plan.share) == (aligned, share)
    assert plan.covered() == plan.expected()


def test_no_row_at_all_is_no_work(library: ctypes.CDLL) -> None:
    plan = Plan(library, [0, 0, 0], 4, 100, 16, 32, 0, 0)
    assert all(entry[3] == 0 for entry in plan.entries)
