"""Which steps a GPU's profile looks at, on a CPU and without the profiler."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.engine.device_on_cpu import PagedReference, device_engine, install

from headrace.kernels.planned import PlannedOperations
from headrace.testing import gpu_profile
from headrace.testing.gpu_profile import profile_steps
from headrace.testing.tiny_models import KINDS, make_oracle
from headrace.workers.engine.loading import load
from headrace.workers.engine.plan import Plan

Steps = list[tuple[str, list[int]]]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    install(monkeypatch)
    make_oracle(KINDS["llama tied"], tmp_path)
    operations = PlannedOperations(PagedReference())
    engine = device_engine(
        load(tmp_path, operations, torch.float32),
        operations,
        max_rows=8,
        kv_tokens=800,
        step_tokens=128,
        page_size=4,
        chunk_bytes=1 << 20,
    )
    return SimpleNamespace(engine=engine)


@pytest.fixture
def steps(made: Any, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Of each profiled step its kind, and the tokens that rows have in what it begins with."""
    seen: Steps = []
    plans: list[Plan] = []
    start = made.engine._start

    def noting(plan: Plan) -> None:
        plans.append(plan)
        start(plan)

    def profiled(step: Any, kind: str, *, wanted: bool) -> Iterator[tuple[str, list[Any]]]:
        plans.clear()
        step()
        if wanted:
            seen.append((kind, [chunk.num_tokens for chunk in plans[0].chunks]))
            yield kind, []

    monkeypatch.setattr(made.engine, "_start", noting)
    monkeypatch.setattr(gpu_profile, "_profiled", profiled)
    return seen


def test_a_long_prompt_has_a_step_of_its_own(made: Any, steps: Steps) -> None:
    assert [kind for kind, _ in profile_steps(made, 2, long_prompt=100)] == [kind for kind, _ in steps]
    assert steps == [
        ("prompts alone", [40, 41]),
        ("rows that decode", [1, 1]),
        ("rows that decode beside a prompt", [1, 1, 90]),
        ("a long prompt", [100]),
    ]
    assert made.engine.num_used_pages == 0


def test_without_one_there_are_three_kinds_of_steps(made: Any, steps: Steps) -> None:
    assert len(list(profile_steps(made, 2))) == 3
    assert all(len(tokens) <= 3 for _, tokens in steps)
