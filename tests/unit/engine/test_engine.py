from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequestError
from headrace.job import SamplingParams
from headrace.kernels.table import Batch
from headrace.workers.channel import Add, Drop
from headrace.workers.engine import host_steps
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.models.llama import Llama

Params = Callable[..., SamplingParams]
MakeEngine = Callable[..., Engine]
Results = dict[int, tuple[list[int], str]]


@pytest.fixture
def make_engine(make_any_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    return make_any_engine


def prompt(row: int, num_tokens: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 97, (num_tokens,), generator=torch.Generator().manual_seed(row)).tolist())


def run(engine: Engine, arrivals: Iterable[tuple[int, Add]]) -> Results:
    """Add each row at its step, and step until all have ended."""
    waiting = sorted(arrivals, key=lambda arrival: arrival[0])
    results: Results = {add.row: ([], "") for _, add in waiting}
    step = 0
    while waiting or engine.has_rows:
        while waiting and waiting[0][0] <= step:
            engine.add(waiting.pop(0)[1])
        if engine.has_rows:
            for row, token_id, finish in engine.step().tokens:
                assert results[row][1] == "", "nothing comes after the end"
                results[row] = ([*results[row][0], *([] if finish == "error" else [token_id])], finish)
        step += 1
    return results


def adds(params: Params) -> list[Add]:
    """Rows of all kinds, with prompts shorter and longer than a step's budget."""
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "seed": 5},
        {"temperature": 1.0, "top_p": 0.9, "seed": 6},
        {"temperature": 1.2, "top_k": 5, "seed": 7},
        {"ignore_eos": False, "temperature": 2.0, "seed": 8, "max_tokens": 60},
        {"temperature": 1.0, "min_p": 0.1, "min_tokens": 4, "stop_token_ids": tuple(range(60)), "seed": 9},
    ]
    lengths = (1, 5, 30, 8, 2, 17)
    return [
        Add(row, prompt(row, length), (), params(**kind))
        for row, (length, kind) in enumerate(zip(lengths, kinds, strict=True))
    ]


@pytest.fixture(scope="module")
def solo() -> dict[Add, tuple[list[int], str]]:
    return {}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_rows_fused_in_any_order_of_arrival_get_the_tokens_they_get_alone(
    make_engine: MakeEngine, params: Params, solo: dict[Add, tuple[list[int], str]], data: st.DataObject
) -> None:
    rows = data.draw(st.permutations(adds(params)))
    steps = data.draw(st.lists(st.integers(0, 15), min_size=len(rows), max_size=len(rows)))
    engine = make_engine(
        max_rows=data.draw(st.integers(1, 6)), kv_tokens=128, step_tokens=data.draw(st.integers(6, 40))
    )
    for add in rows:
        if add not in solo:
            solo.update({add: run(make_engine(step_tokens=256), [(0, add)])[add.row]})
    assert run(engine, zip(steps, rows, strict=True)) == {add.row: solo[add] for add in rows}


@pytest.mark.parametrize("limit", [0, 12])
def test_rows_that_grow_out_of_being_attended_to_together_get_the_same_tokens(
    make_engine: MakeEngine, params: Params, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    rows = [(0, add) for add in adds(params)]
    together = run(make_engine(), rows)
    monkeypatch.setattr(host_steps, "MAX_TOGETHER_TOKENS", limit)
    assert run(make_engine(max_rows=6, step_tokens=40), rows) == together


def test_the_rows_that_this_file_compares_are_of_all_kinds(make_engine: MakeEngine, params: Params) -> None:
    results = run(make_engine(), [(0, add) for add in adds(params)])
    assert {finish for _, finish in results.values()} == {"stop", "length"}
    assert [len(tokens) for tokens, _ in results.values()][:4] == [12] * 4
    assert len(results[5][0]) >= 5, "min_tokens holds the stop ids back"
    assert len({tuple(tokens) for tokens, _ in results.values()}) == 6


@pytest.mark.parametrize("num_done", [1, 5, 11])
def test_a_row_resumed_with_its_output_goes_on_as_if_unbroken(
    make_engine: MakeEngine, params: Params, num_done: int
) -> None:
    rows = adds(params)[:4]
    unbroken = run(make_engine(), [(0, add) for add in rows])
    resumed = [Add(add.row, add.prompt_ids, tuple(unbroken[add.row][0][:num_done]), add.params) for add in rows]
    rest = run(make_engine(), [(0, add) for add in resumed])
    assert rest == {row: (tokens[num_done:], finish) for row, (tokens, finish) in unbroken.items()}


def test_dropped_rows_say_nothing_more_and_leave_room(make_engine: MakeEngine, params: Params) -> None:
    engine = make_engine(max_rows=1, kv_tokens=40)
    for row in (1, 2, 3):
        engine.add(Add(row, prompt(row, 4), (), params(max_tokens=30)))
    assert [row for row, _, _ in engine.step().tokens] == [1]
    engine.drop(Drop((1, 2, 77)))
    # A step for row 1 may have been at work; nobody hears of it.
    assert {row for _ in range(2) for row, _, _ in engine.step().tokens} == {3}
    engine.clear()
    assert not engine.has_rows


@pytest.mark.parametrize(
    ("prompt_ids", "output_ids", "max_tokens", "reason"),
    [
        ((), (), 4, "no tokens"),
        ((1, 97), (), 4, "token id"),
        ((1, -1), (), 4, "token id"),
        ((1, 2**32 + 1), (), 4, "token id"),
        ((1,), (97,), 4, "token id"),
        ((1,) * 250, (), 7, "257 tokens"),
        ((1,), (5, 5, 5, 5), 4, "generated already"),
    ],
)
def test_a_row_that_can_never_be_computed_is_refused(
    make_engine: MakeEngine,
    params: Params,
    prompt_ids: tuple[int, ...],
    output_ids: tuple[int, ...],
    max_tokens: int,
    reason: str,
) -> None:
    engine = make_engine(kv_tokens=256)
    with pytest.raises(InvalidRequestError, match=reason):
        engine.add(Add(1, prompt_ids, output_ids, params(max_tokens=max_tokens)))
    assert not engine.has_rows


def test_a_row_number_in_flight_is_refused(make_engine: MakeEngine, params: Params) -> None:
    engine = make_engine()
    engine.add(Add(1, (5,), (), params()))
    with pytest.raises(InvalidRequestError, match="in flight"):
        engine.add(Add(1, (6,), (), params()))


def test_a_row_whose_computation_raises_ends_alone(
    make_engine: MakeEngine, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = 96
    good = [Add(row, prompt(row, 6), (), params(temperature=1.0, seed=row)) for row in (1, 2)]
    assert all(poison not in add.prompt_ids for add in good)
    expected = run(make_engine(), [(0, add) for add in good])
    forward = Llama.forward

    def failing(self: Llama, batch: Batch) -> torch.Tensor | None:
        if poison in batch.token_ids.tolist():
            raise RuntimeError("the device said no")
        return forward(self, batch)

    monkeypatch.setattr(Llama, "forward", failing)
    engine = make_engine()
    bad = Add(3, (poison, 4), (), params())
    results = run(engine, [(0, good[0]), (1, bad), (1, good[1])])
    assert results == {**expected, 3: ([], "error")}
