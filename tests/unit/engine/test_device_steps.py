"""What a GPU's steps do around their kernels, without a GPU: rows under churn get what each gets alone on a CPU."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.engine.device_on_cpu import Graphs, PagedReference, PromptGraphs, device_engine, install

from headrace.job import SamplingParams
from headrace.kernels.planned import PlannedOperations
from headrace.testing.churn import churn, requests, solo
from headrace.workers.channel import Add
from headrace.workers.engine import padded_size
from headrace.workers.engine.device_results import DeviceResults
from headrace.workers.engine.device_sampling import DeviceSampler
from headrace.workers.engine.device_steps import DeviceSteps
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.loading import load
from headrace.workers.engine.row_state import RowState
from headrace.workers.engine.warm_up import rehearsed_steps

Params = Callable[..., SamplingParams]


@pytest.fixture
def make_device_engine(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    install(monkeypatch)
    monkeypatch.setattr(padded_size, "TOKEN_STEP", 8)
    operations = PlannedOperations(PagedReference())
    loaded = load(model_dir, operations, torch.float32)

    def make(*, max_rows: int, kv_tokens: int, step_tokens: int, chunk_bytes: int = 1 << 20) -> Engine:
        return device_engine(
            loaded,
            operations,
            max_rows=max_rows,
            kv_tokens=kv_tokens,
            step_tokens=step_tokens,
            page_size=4,
            chunk_bytes=chunk_bytes,
        )

    return make


def steps_of(engine: Engine) -> DeviceSteps:
    steps = engine._runner.steps
    assert isinstance(steps, DeviceSteps)
    return steps


@pytest.mark.parametrize(("seed", "step_tokens"), [(4, 40), (5, 16)])
@torch.inference_mode()
def test_rows_under_churn_get_the_tokens_that_they_get_alone_on_a_cpu(
    make_device_engine: Callable[..., Engine],
    make_engine: Callable[..., Engine],
    params: Params,
    seed: int,
    step_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(seed)
    families = requests(params, rng, 150)
    engine = make_device_engine(max_rows=12, kv_tokens=260, step_tokens=step_tokens)
    moved: list[int] = []
    move = RowState._move

    def counted(*args: object) -> object:
        place, known = move(*args)  # type: ignore[arg-type]
        moved.append(place)
        return place, known

    monkeypatch.setattr(RowState, "_move", counted)
    tokens, cancelled = churn(engine, families, rng)
    assert engine.num_used_pages == 0
    assert engine.num_preemptions > 5
    graphs = steps_of(engine)._graphs
    assert isinstance(graphs, Graphs)
    assert graphs.num_replays > 40
    prompt_graphs = steps_of(engine)._prompt_graphs
    assert isinstance(prompt_graphs, PromptGraphs)
    assert prompt_graphs.num_replays > 40
    if step_tokens == 16:
        # Beside others a prompt finds rows that decode, but for chance; alone it takes steps of the other kinds.
        last = Add(len(tokens), tuple(range(3, 43)), (), params(max_tokens=2, seed=1))
        tokens[last.row] = solo(engine, last)
        families.append([last])
        sizes = [size for size, _ in prompt_graphs.captured]
        assert {(size.decodes, size.samples) for size in sizes} == {(True, True), (False, True), (False, False)}
    assert len(moved) > 10
    alone = make_engine(max_rows=1, kv_tokens=4096, step_tokens=4096, page_size=4096)
    for add in (add for family in families for add in family):
        expected = solo(alone, add)
        assert tokens[add.row] == (expected[: len(tokens[add.row])] if add.row in cancelled else expected), add


@pytest.mark.parametrize("at", [(DeviceSteps, "_forward"), (DeviceSampler, "draw"), (DeviceResults, "send")])
@torch.inference_mode()
def test_a_step_that_fails_half_way_changes_no_row_that_goes_on(
    make_device_engine: Callable[..., Engine],
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    at: tuple[type, str],
) -> None:
    """New positions were launched, and perhaps draws: all of it must be made undone."""
    engine = make_device_engine(max_rows=4, kv_tokens=256, step_tokens=64)
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"temperature": 1.0, "frequency_penalty": 1.5},
        {"temperature": 0.9, "bad_words": ((5, 6), (7,))},
    )
    adds = [Add(row, (9, 8, 7 + row), (), params(max_tokens=20, seed=row, **kind)) for row, kind in enumerate(kinds)]
    undisturbed = run(engine, adds, lambda number: None)
    works = getattr(*at)

    def fail(number: int) -> None:
        failed: list[bool] = []

        def work_and_raise(*args: Any, **kwargs: Any) -> Any:
            result = works(*args, **kwargs)
            if number in (4, 9) and not failed:
                failed.append(True)
                raise ArithmeticError("planted")
            return result

        monkeypatch.setattr(*at, work_and_raise)

    assert run(engine, adds, fail) == undisturbed
    assert all(len(tokens) == 20 for tokens in undisturbed.values())
    assert engine.num_used_pages == 0


@torch.inference_mode()
def test_steps_apart_leave_alone_what_is_known_of_rows(
    make_device_engine: Callable[..., Engine], params: Params
) -> None:
    engine = make_device_engine(max_rows=12, kv_tokens=400, step_tokens=16)
    for row in range(5):
        engine.add(Add(row, tuple(range(row, row + 9)), (), params(8)))
    for _ in range(4):
        engine.step()
    steps = steps_of(engine)
    words, places = steps.rows._memory._words.clone(), steps.places()
    assert places.end == 5
    apart = steps.apart()
    sizes = set()
    for chunks in rehearsed_steps(12, 16, 64, page_size=4):
        logits, packed = apart.compute(chunks)
        assert logits is not None
        assert len(logits) == len(packed.places)
        sizes.add(len(packed.batch.token_ids))
    assert sizes == {*range(1, 17)}, "12 rows that decode, prompts of 16 tokens"
    assert torch.equal(steps.rows._memory._words, words)
    assert [steps.rows.place_of(row) for row in engine._fusion._running.values()] == [0, 1, 2, 3, 4]


def run(engine: Engine, adds: list[Add], before_step: Callable[[int], None]) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {add.row: [] for add in adds}
    for add in adds:
        engine.add(add)
    number = 0
    while engine.has_rows:
        number += 1
        before_step(number)
        for row, token_id, finish in engine.step().tokens:
            assert finish != "error"
            tokens[row].append(token_id)
    return tokens
