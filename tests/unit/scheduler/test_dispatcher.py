"""How the dispatcher cuts what is ready."""

from headrace.broker import Broker, ReadyRequest, WorkerInfo
from headrace.workers.costs.table import CostTable
from headrace.workers.scheduler.dispatcher import Dispatcher


def ready(request_id: str, length: int, strikes: int = 0, num_tokens: int = 0) -> ReadyRequest:
    return ReadyRequest(request_id, length, length + 10, num_tokens, strikes)


def ids(batches: list[list[ReadyRequest]]) -> list[list[str]]:
    return [[request.request_id for request in batch] for batch in batches]


def test_batches_leave_in_the_order_of_their_most_urgent_member(fake_broker: Broker) -> None:
    dispatcher = Dispatcher(fake_broker, fake_broker.settings)
    batches = dispatcher.cut([ready("long", 4000), ready("a", 4), ready("b", 4)])
    assert ids(batches) == [["long"], ["a", "b"]]


def test_requests_with_a_strike_travel_alone_and_one_of_them_first(fake_broker: Broker) -> None:
    dispatcher = Dispatcher(fake_broker, fake_broker.settings)
    batches = dispatcher.cut(
        [ready("a", 4), ready("suspect", 4, strikes=1), ready("b", 4), ready("other suspect", 4, strikes=2)]
    )
    assert ids(batches) == [["suspect"], ["a", "b"], ["other suspect"]]


def test_a_resumed_request_counts_with_the_tokens_it_has_written(fake_broker: Broker) -> None:
    dispatcher = Dispatcher(fake_broker, fake_broker.settings)
    assert ids(dispatcher.cut([ready("resumed", 4, num_tokens=4000), ready("a", 4)])) == [["resumed"], ["a"]]


def test_batches_fit_into_the_smallest_living_worker(fake_broker: Broker) -> None:
    dispatcher = Dispatcher(fake_broker, fake_broker.settings)
    dispatcher.fit([WorkerInfo("big", 0, 32, 9999, 0, {}), WorkerInfo("small", 0, 2, 9999, 0, {})], {})
    assert [len(batch) for batch in dispatcher.cut([ready(str(i), 4) for i in range(5)])] == [2, 2, 1]
    dispatcher.fit([WorkerInfo("short", 0, 32, 28, 0, {})], {})
    assert max(len(batch) for batch in dispatcher.cut([ready(str(i), 4) for i in range(5)])) == 2


def test_a_published_cost_table_changes_which_requests_share_a_batch(fake_broker: Broker) -> None:
    dispatcher = Dispatcher(fake_broker, fake_broker.settings)
    waiting = [ready("short", 4), ready("long", 4000)]
    assert len(dispatcher.cut(waiting)) == 2
    dispatcher.fit([], {"": CostTable((1,), (1,), ((5.0,),)).encode()})
    assert ids(dispatcher.cut(waiting)) == [["short", "long"]]


def test_a_damaged_cost_table_leaves_the_one_there_was(fake_broker: Broker) -> None:
    dispatcher = Dispatcher(fake_broker, fake_broker.settings)
    dispatcher.fit([], {"": CostTable((1,), (1,), ((5.0,),)).encode()})
    dispatcher.fit([], {"": b"garbage"})
    assert ids(dispatcher.cut([ready("short", 4), ready("long", 4000)])) == [["short", "long"]]


def test_a_full_backlog_stops_dispatching(fake_broker: Broker) -> None:
    for _ in range(fake_broker.settings.max_backlog_batches):
        fake_broker.client.xadd(fake_broker.keys.batches, {"ids": "x"})
    assert Dispatcher(fake_broker, fake_broker.settings).dispatch() == 0
