from itertools import chain

import torch
from hypothesis import given
from hypothesis import strategies as st

from headrace.workers.encoder.runner import packed_positions, row_positions


@given(
    rows=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=8),
    pad_id=st.none() | st.integers(0, 3),
)
def test_packed_rows_are_numbered_as_each_row_alone(rows: list[list[int]], pad_id: int | None) -> None:
    first = 0 if pad_id is None else pad_id + 1
    packed = packed_positions(torch.tensor(list(chain.from_iterable(rows))), [len(row) for row in rows], first, pad_id)
    assert torch.equal(packed, torch.cat([row_positions(torch.tensor(row), first, pad_id) for row in rows]))
