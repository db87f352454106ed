"""What a worker process gives its children."""

import os

import pytest

from headrace.workers.worker import spare_cores


@pytest.mark.parametrize(
    ("num_cores", "num_workers", "num_threads"), [(8, 1, 7), (8, 4, 1), (8, 2, 3), (2, 1, 1), (1, 1, 1)]
)
def test_engines_share_the_cores_and_leave_one_to_the_rest(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, num_workers: int, num_threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: num_cores)
    assert spare_cores(num_workers) == num_threads
