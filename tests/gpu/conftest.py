"""Tests of the kernels. They are skipped for one reason only: torch sees no GPU.

Several processes may run them on one GPU: ``pytest -n 12 --dist load --maxschedchunk 1 tests/gpu``.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headrace.kernels import rehearsal

HERE = Path(__file__).parent
#: Who takes longest begins first, so that nobody waits for it in the end.
LONGEST = ("test_full_shapes", "test_churn", "test_deterministic", "test_encoder_runner", "test_device_sampling")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skip(reason="torch sees no GPU")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(missing)
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("alone"):
        return 0
    order = {name: turn for turn, name in enumerate(LONGEST, start=1)}
    return order.get(item.path.stem, len(order) + 1) if HERE in item.path.parents else 0


@pytest.fixture(autouse=True)
def share_the_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hold the GPU together with other processes' tests; or alone, where a test is marked so."""
    base = Path(tempfile.gettempdir()) / f"headrace-test-gpu-{os.getuid()}"
    with base.with_suffix(".door").open("w") as door, base.with_suffix(".lock").open("w") as gpu:
        # Who waits to be alone keeps the door shut, or those who share would come and go for ever.
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(gpu, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.fixture(autouse=True, scope="session")
def share_the_cores() -> Iterator[None]:
    """Side by side with others' compilers and threads: each process would take all cores for itself."""
    num_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if num_processes > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_processes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "MOST_COMPILERS", 2)
        yield


@pytest.fixture
def device() -> torch.device:
    """The GPU; every test draws the same numbers on it."""
    torch.manual_seed(0)
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found
