"""How the dispatcher cuts what is ready."""

import math
from dataclasses import replace

import pytest
from tests.unit.contract.actors import Actors
from tests.unit.scheduler.tables import linear

from headrace.broker import Broker
from headrace.heartbeat import WorkerInfo
from headrace.moves import ReadyRequest, Window
from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.dispatcher import Dispatcher


def ready(request_id: str, length: int, strikes: int = 0, num_tokens: int = 0) -> ReadyRequest:
    return ReadyRequest(request_id, length, length + 10, num_tokens, strikes)


def cut(
    dispatcher: Dispatcher, *requests: ReadyRequest, num_running: int = 0, running_tokens: int = 0
) -> list[list[str]]:
    """The ids of each batch."""
    found = dispatcher.cut(Window(1_000, len(requests), num_running, running_tokens, 0, 0, requests))
    return [[request.request_id for request in batch] for batch, _ in found.batches]


def padded(broker: Broker, **given: object) -> Dispatcher:
    """A dispatcher for workers of which nobody knows whether they pack."""
    return Dispatcher(broker, broker.settings.model_copy(update={"batching": "dp", **given}))


def test_batches_leave_in_the_order_of_their_most_urgent_member(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker)
    assert cut(dispatcher, ready("long", 4000), ready("a", 4), ready("b", 4)) == [["long"], ["a", "b"]]


def test_requests_with_a_strike_travel_alone_and_one_of_them_first(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker)
    batches = cut(
        dispatcher, ready("a", 4), ready("suspect", 4, strikes=1), ready("b", 4), ready("other suspect", 4, strikes=2)
    )
    assert batches == [["suspect"], ["a", "b"], ["other suspect"]]


def test_a_resumed_request_counts_with_the_tokens_it_has_written(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker)
    assert cut(dispatcher, ready("resumed", 4, num_tokens=4000), ready("a", 4)) == [["resumed"], ["a"]]


def test_batches_fit_into_the_smallest_living_worker(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker)
    dispatcher.fit([WorkerInfo("big", 0, 32, 9999, 0, {}), WorkerInfo("small", 0, 2, 9999, 0, {})], {})
    assert [len(batch) for batch in cut(dispatcher, *(ready(str(i), 4) for i in range(5)))] == [2, 2, 1]
    dispatcher.fit([WorkerInfo("short", 0, 32, 28, 0, {})], {})
    assert max(len(batch) for batch in cut(dispatcher, *(ready(str(i), 4) for i in range(5)))) == 2


def test_a_published_cost_table_changes_which_requests_share_a_batch(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker)
    waiting = [ready("short", 4), ready("long", 4000)]
    assert len(cut(dispatcher, *waiting)) == 2
    dispatcher.fit([], {"": CostTable((1,), (1,), ((5.0,),)).encode()})
    assert cut(dispatcher, *waiting) == [["short", "long"]]


def test_a_damaged_cost_table_leaves_the_one_there_was(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker)
    dispatcher.fit([], {"": CostTable((1,), (1,), ((5.0,),)).encode()})
    dispatcher.fit([], {"": b"garbage"})
    assert cut(dispatcher, ready("short", 4), ready("long", 4000)) == [["short", "long"]]


def test_a_full_backlog_stops_dispatching(fake_broker: Broker) -> None:
    for _ in range(fake_broker.settings.max_backlog_batches):
        fake_broker.client.xadd(fake_broker.keys.batches, {"ids": "x"})
    assert Dispatcher(fake_broker, fake_broker.settings).dispatch() == 0


def test_an_encoder_s_last_batch_stays_while_another_waits_and_rows_may_join_it(fake_broker: Broker) -> None:
    actors = Actors(fake_broker)
    dispatcher = Dispatcher(fake_broker, fake_broker.settings, for_encoders=True)
    dispatcher.fit([WorkerInfo("w", 0, 32, 9999, 0, {})], {})
    actors.queued("a")
    assert dispatcher.dispatch() == 1
    actors.queued("b")
    assert (dispatcher.dispatch(), actors.state("b")) == (0, "queued")
    actors.queued("c")
    actors.claim("w")
    assert dispatcher.dispatch() == 2, "together, now that nothing waits"


def test_batches_that_rows_may_join_at_the_worker_leave_as_long_as_there_is_room(fake_broker: Broker) -> None:
    actors = Actors(fake_broker)
    dispatcher = Dispatcher(fake_broker, fake_broker.settings)
    for name in "ab":
        actors.queued(name)
        assert dispatcher.dispatch() == 1


def test_an_encoder_s_full_batches_leave_ahead_of_the_last_one_and_suspects_pass_it(fake_broker: Broker) -> None:
    actors = Actors(fake_broker)
    for held in actors.running("suspect", "other", worker="killed"):
        actors.emit(held.emit("lost"))
    settings = fake_broker.settings.model_copy(update={"max_batch_rows": 2})
    dispatcher = Dispatcher(fake_broker, settings, for_encoders=True)
    dispatcher.fit([WorkerInfo("w", 0, 32, 9999, 0, {"class": "gpu"})], {})
    actors.queued("a", "b", "c")
    assert dispatcher.dispatch() == 4
    assert {actors.state(name) for name in ("suspect", "other", "a", "b")} == {"batched"}
    assert actors.state("c") == "queued"
    actors.queued("d")
    assert dispatcher.dispatch() == 2, "c and d are as many as a batch takes"


def test_an_encoder_s_last_batch_leaves_where_a_worker_has_none_to_go_to(fake_broker: Broker) -> None:
    actors = Actors(fake_broker)
    dispatcher = Dispatcher(fake_broker, fake_broker.settings, for_encoders=True)
    dispatcher.fit([WorkerInfo(name, 0, 32, 9999, 0, {}) for name in "vw"], {})
    for name in "ab":
        actors.queued(name)
        assert dispatcher.dispatch() == 1


def test_batches_fit_into_the_memory_that_is_free_but_never_shrink_below_a_quarter(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker)
    dispatcher.fit([WorkerInfo("w", 0, 32, 400, 0, {}), WorkerInfo("v", 0, 32, 400, 0, {})], {})
    waiting = [ready(str(i), 10) for i in range(8)]  # each may come to need 20 tokens
    assert [len(batch) for batch in cut(dispatcher, *waiting)] == [8]
    assert [len(batch) for batch in cut(dispatcher, *waiting, running_tokens=560)] == [6, 2]
    assert max(len(batch) for batch in cut(dispatcher, *waiting, running_tokens=800)) == 5


def test_batches_fit_into_the_rows_that_are_free_but_never_shrink_below_a_quarter(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker)
    dispatcher.fit([WorkerInfo("w", 0, 12, 9999, 0, {}), WorkerInfo("v", 0, 12, 9999, 0, {})], {})
    waiting = [ready(str(i), 4) for i in range(12)]
    assert [len(batch) for batch in cut(dispatcher, *waiting)] == [12]
    assert [len(batch) for batch in cut(dispatcher, *waiting, num_running=12)] == [6, 6]
    assert {len(batch) for batch in cut(dispatcher, *waiting, num_running=24)} == {3}


def test_what_a_busy_class_may_still_take_is_a_quarter_of_its_own_workers(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker)
    sizes = {"big": (40, 4_000), "small": (8, 160)}
    dispatcher.fit([WorkerInfo(name, 0, *size, 0, {"class": name}) for name, size in sizes.items()], {})
    waiting = tuple(ready(str(i), 4) for i in range(40))  # each may come to need 14 tokens
    found = {}
    for worker_class in dispatcher._book.classes:
        no_rows, no_memory = Window(1_000, 40, 48, 0, 0, 0, waiting), Window(1_000, 40, 0, 4_160, 0, 0, waiting)
        batches = [dispatcher.cut(window, worker_class).batches for window in (no_rows, no_memory)]
        found[worker_class.name] = [max(len(requests) for requests, _ in each) for each in batches]
    assert found == {"big": [10, 16], "small": [2, 2]}


def test_the_suspect_that_travels_first_leaves_less_room_to_those_behind_it(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker)
    dispatcher.fit([WorkerInfo("w", 0, 12, 9999, 0, {})], {})
    suspects = [ready("suspect", 4, strikes=1), ready("other suspect", 4, strikes=1)]
    sizes = [len(batch) for batch in cut(dispatcher, *suspects, *(ready(str(i), 4) for i in range(8)), num_running=6)]
    assert sizes == [1, 5, 3, 1]


def test_an_encoder_s_batches_do_not_shrink_by_rows_that_they_cannot_join(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker)
    encoders = Dispatcher(fake_broker, dispatcher._settings, for_encoders=True)
    encoders.fit([WorkerInfo("w", 0, 12, 9999, 0, {})], {})
    assert [len(batch) for batch in cut(encoders, *(ready(str(i), 4) for i in range(12)), num_running=12)] == [12]


def test_a_deadline_that_cannot_be_met_even_alone_is_given_up_where_the_setting_says_so(fake_broker: Broker) -> None:
    past = replace(ready("past", 4), deadline_ms=1_000)
    soon = replace(ready("soon", 400), deadline_ms=1_100)
    later = replace(ready("later", 4), deadline_ms=9_000)
    window = Window(1_000, 3, 0, 0, 0, 0, (past, soon, later))
    table = {"": CostTable.linear(100.0, 1.0, 512, 16).encode()}
    for drop_hopeless, wanted in ((False, ["past"]), (True, ["past", "soon"])):
        dispatcher = padded(fake_broker, drop_hopeless=drop_hopeless)
        dispatcher.fit([], table)
        found = dispatcher.cut(window)
        assert [request.request_id for request in found.hopeless] == wanted
        assert not any(request in found.hopeless for requests, _ in found.batches for request in requests)


def test_what_is_hopeless_ends_before_it_costs_a_worker_anything(fake_broker: Broker) -> None:
    actors = Actors(fake_broker)
    actors.queued("sound")
    actors.queued("hopeless", deadline_ms=60_000)
    dispatcher = padded(fake_broker, drop_hopeless=True)
    dispatcher.fit([], {"": CostTable.linear(70_000.0, 1.0, 512, 16).encode()})
    assert dispatcher.dispatch() == 1
    assert [actors.state(name) for name in ("sound", "hopeless")] == ["batched", "done"]
    actors.queued("alone", deadline_ms=60_000)
    assert dispatcher.dispatch() == 0
    assert actors.state("alone") == "done", "without a batch to travel with, too"


def test_what_one_class_is_too_slow_for_waits_for_a_faster_one(fake_broker: Broker) -> None:
    dispatcher = padded(fake_broker, drop_hopeless=True)
    workers = [WorkerInfo(name, 0, 32, 9999, 0, {"class": name}) for name in ("fast", "slow")]
    tables = {"fast": CostTable.linear(10.0, 1.0, 512, 16), "slow": CostTable.linear(900.0, 90.0, 512, 16)}
    dispatcher.fit(workers, {name: table.encode() for name, table in tables.items()})
    fast, slow = dispatcher._book.classes
    requests = (ready("calm", 4), replace(ready("soon", 4), deadline_ms=1_500))
    window = Window(1_000, 2, 0, 0, 0, 0, requests)
    for worker_class, batches in ((fast, {"calm", "soon"}), (slow, {"calm"})):
        found = dispatcher.cut(window, worker_class)
        assert {request.request_id for batch, _ in found.batches for request in batch} == batches
        assert found.hopeless == ()
    assert [r.request_id for r in dispatcher.cut(replace(window, now_ms=1_495), fast).hopeless] == ["soon"]


def test_a_lazy_dispatcher_lets_requests_gather_and_says_for_how_long(fake_broker: Broker) -> None:
    actors = Actors(fake_broker)
    dispatcher = padded(fake_broker, trigger="lazy", lazy_timeout_ms=60_000, window=3)
    dispatcher.fit([WorkerInfo("w", 0, 32, 9999, 0, {})], {})
    actors.queued("a", "b")
    assert dispatcher.dispatch() == 0
    assert 50_000 < dispatcher.wait_ms <= 60_000
    actors.queued("c")
    assert dispatcher.dispatch() == 3, "the window is full"
    assert dispatcher.wait_ms == math.inf


def test_a_deadline_ends_the_wait_in_time(fake_broker: Broker) -> None:
    actors = Actors(fake_broker)
    dispatcher = padded(fake_broker, trigger="lazy", lazy_timeout_ms=60_000)
    dispatcher.fit([], {"": CostTable.linear(1_000.0, 1.0, 512, 16).encode()})
    actors.queued("a", deadline_ms=60_000)
    assert dispatcher.dispatch() == 0
    # A prefill of 1,004 ms may take twice as long, 5 tokens come behind the first one, and 100 ms are for the way.
    assert 40_000 < dispatcher.wait_ms <= 60_000 - 2 * 1_004 - 5 * 1_001 - 100


def test_what_comes_back_from_a_lost_worker_does_not_wait_for_company(fake_broker: Broker) -> None:
    actors = Actors(fake_broker)
    for held in actors.running("a", worker="killed"):
        actors.emit(held.emit("lost"))
    assert padded(fake_broker, trigger="lazy", lazy_timeout_ms=60_000).dispatch() == 1


def test_where_packing_is_cheaper_the_dispatcher_packs_and_says_so(
    fake_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher = Dispatcher(fake_broker, fake_broker.settings)
    waiting = [ready("short", 4), ready("long", 400), ready("tiny", 2)]
    cheap, dear = (linear(packed_token_ms=cost).encode() for cost in (1.0, 9.0))
    with caplog.at_level("INFO"):
        for table in (cheap, cheap, dear):
            dispatcher.fit([], {"": table})
            cuts = cut(dispatcher, *waiting)
    assert [record.getMessage().split(" costs")[0] for record in caplog.records] == [
        "any class: packing", "any class: padding"
    ]  # fmt: skip
    assert cuts == [["short", "tiny"], ["long"]]
