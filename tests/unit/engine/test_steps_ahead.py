"""What is particular to an engine that starts a step before the tokens of the one before it are known."""

from collections.abc import Callable

import pytest

from headrace.job import SamplingParams
from headrace.testing.steps_ahead import StepsAhead
from headrace.workers.channel import Add, Drop, Tokens
from headrace.workers.engine import assembly
from headrace.workers.engine.engine import Engine
from headrace.workers.engine.host_steps import HostSteps
from headrace.workers.engine.plan import Chunk

Params = Callable[..., SamplingParams]
MakeEngine = Callable[..., Engine]


@pytest.fixture
def made(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Engine, StepsAhead]]:
    def make(**limits: int) -> tuple[Engine, StepsAhead]:
        monkeypatch.setattr(assembly, "HostSteps", lambda *args: StepsAhead(HostSteps(*args)))
        engine = make_engine(**limits)
        steps = engine._runner.steps
        assert isinstance(steps, StepsAhead)
        return engine, steps

    return make


def run(engine: Engine) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    while engine.has_rows:
        note(engine.step(), tokens)
    return tokens


def note(step: Tokens, tokens: dict[int, list[int]]) -> None:
    for row, token_id, _ in step.tokens:
        tokens.setdefault(row, []).append(token_id)


def test_a_second_step_is_at_work_before_the_first_ones_tokens_are_told(
    made: Callable[..., tuple[Engine, StepsAhead]], params: Params
) -> None:
    engine, steps = made()
    engine.add(Add(1, (3, 4, 5), (), params(max_tokens=5)))
    seen = []
    while engine.has_rows:
        assert len(engine.step().tokens) == 1
        seen.append(len(steps.unfinished))
    assert seen == [1, 1, 1, 1, 0], "no step is started for a row whose last token is being drawn"
    assert steps.most_unfinished == 2
    assert engine.num_used_pages == 0


def test_a_stop_id_ends_a_row_and_the_token_behind_it_is_nobodys(
    made: Callable[..., tuple[Engine, StepsAhead]], params: Params
) -> None:
    engine, steps = made()
    engine.add(Add(1, (3, 4, 5), (), params(max_tokens=9)))
    drawn = run(engine)[1]
    engine.add(Add(2, (3, 4, 5), (), params(max_tokens=9, stop_token_ids=(drawn[3],))))
    assert run(engine) == {2: drawn[: drawn.index(drawn[3]) + 1]}
    assert not steps.unfinished
    assert engine.num_used_pages == 0


def test_a_dropped_row_is_heard_of_no_more_though_its_step_is_at_work(
    made: Callable[..., tuple[Engine, StepsAhead]], params: Params
) -> None:
    engine, steps = made()
    for row in (1, 2):
        engine.add(Add(row, (row, 4, 5), (), params(max_tokens=9)))
    engine.step()
    assert steps.unfinished
    engine.drop(Drop((1,)))
    # The number is used again, by a row that has not drawn anything yet.
    engine.add(Add(1, (7, 8), (), params(max_tokens=4)))
    alone = made()[0]
    alone.add(Add(1, (7, 8), (), params(max_tokens=4)))
    assert run(engine)[1] == run(alone)[1]


def test_a_courier_that_goes_leaves_no_step_at_work(
    made: Callable[..., tuple[Engine, StepsAhead]], params: Params
) -> None:
    engine, steps = made()
    engine.add(Add(1, (3, 4, 5), (), params(max_tokens=9)))
    engine.step()
    assert steps.unfinished
    engine.clear()
    assert not steps.unfinished
    assert not engine.has_rows
    assert engine.num_used_pages == 0


def test_a_row_that_raises_ends_alone_after_the_step_before_it_has_been_told(
    made: Callable[..., tuple[Engine, StepsAhead]], params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, steps = made()
    adds = [Add(row, (row, 4, 5), (), params(max_tokens=8)) for row in (1, 2, 3)]
    for add in adds:
        engine.add(add)
    undisturbed = run(engine)
    for add in adds:
        engine.add(add)
    start = steps.start

    def failing(chunks: list[Chunk]) -> object:
        if any(chunk.sequence.row == 2 and chunk.start == 6 for chunk in chunks):
            raise ArithmeticError("planted")
        return start(chunks)

    monkeypatch.setattr(steps, "start", failing)
    tokens: dict[int, list[int]] = {}
    errors = []
    while engine.has_rows:
        step = engine.step()
        errors += [step.error] if step.error else []
        note(Tokens(tuple(told for told in step.tokens if told[2] != "error")), tokens)
    assert errors == ["ArithmeticError: planted"]
    assert tokens == undisturbed | {2: undisturbed[2][:4]}
    assert engine.num_used_pages == 0


def test_what_a_row_that_failed_has_computed_is_nothing_for_others(
    made: Callable[..., tuple[Engine, StepsAhead]], params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, steps = made(step_tokens=64)
    prompt = tuple(range(3, 23))
    start = steps.start

    def failing(chunks: list[Chunk]) -> object:
        if chunks[0].start == len(prompt):
            raise ArithmeticError("planted")
        return start(chunks)

    monkeypatch.setattr(steps, "start", failing)
    engine.add(Add(1, prompt, (), params(max_tokens=8)))
    run(engine)
    monkeypatch.undo()
    before = engine.num_prefilled_tokens
    engine.add(Add(2, prompt, (), params(max_tokens=1)))
    run(engine)
    assert engine.num_prefilled_tokens - before == len(prompt)
