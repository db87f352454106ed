"""What the scheduler decides is what the engine executes: a batch's prompts share a step, whatever the table says."""

import json
from collections.abc import Callable
from dataclasses import replace

from tests.conftest import fast_settings
from tests.unit.contract.actors import Actors

from headrace.broker import Broker
from headrace.job import Job
from headrace.moves import HeartbeatCall
from headrace.testing.words import word_tokenizer
from headrace.workers.channel import Add
from headrace.workers.costs.table import CostTable
from headrace.workers.engine.engine import Engine
from headrace.workers.scheduler.admission import Admitter
from headrace.workers.scheduler.process import Scheduler

MakeEngine = Callable[..., Engine]
LENGTHS = {"a": 3, "b": 40, "c": 4, "d": 38, "e": 3}
#: Padding costs as much as tokens do, or nothing does but the batch itself; packing is out of the question.
PADS = CostTable.linear(10.0, 1.0, 64, 8, packs=False)
FREE = CostTable.linear(10.0, 0.001, 64, 8, packs=False)
#: Packing costs next to nothing, so that the order of arrival is kept.
PACKS = replace(PADS, packed_tokens=(1, 64), packed_ms=(10.0, 10.5))


def shared_prefills(broker: Broker, make_engine: MakeEngine, table: CostTable, rows: int = 8) -> list[set[str]]:
    """Whose first tokens came in one step of the engine, step by step; each batch is claimed when the last has run."""
    broker.settings = fast_settings(max_batch_rows=rows, max_backlog_batches=8)
    broker.client.hset(broker.keys.cost, "", table.encode())
    stream = broker.keys.prefix + "requests"
    for i, (name, length) in enumerate(LENGTHS.items()):
        # No two begin alike: rows wait for pages that others compute for them.
        body = {"prompt": [3 + (17 * i + k) % 90 for k in range(length)], "max_tokens": 1, "temperature": 0}
        broker.client.xadd(stream, {"id": name, "json": json.dumps(body)})
    admitter = Admitter(word_tokenizer(64), "r1", broker.settings)
    # Four times as large as any batch here; while nobody lives, requests leave one by one.
    worker = '{"num_rows": 0, "max_rows": 32, "kv_tokens": 4096}'
    broker.run(HeartbeatCall("worker", "w1", worker, broker.settings.lease_ms, ""))
    Scheduler(broker, admitter, broker.settings).step()
    engine, actors, steps = make_engine(max_rows=8, kv_tokens=512, step_tokens=256), Actors(broker), []
    numbers: dict[int, str] = {}
    while claimed := actors.claim("w1").rows:
        for row in claimed:
            job = Job.decode(row.job)
            numbers[len(numbers)] = row.request_id
            engine.add(Add(len(numbers) - 1, job.prompt_ids, (), job.params))
        while engine.has_rows:
            steps.append({numbers[number] for number, _, _ in engine.step().tokens})
    return steps


def test_a_planted_table_changes_which_requests_share_a_prefill(fake_broker: Broker, make_engine: MakeEngine) -> None:
    assert shared_prefills(fake_broker, make_engine, PADS) == [{"a", "c", "e"}, {"b", "d"}]


def test_batches_that_cost_much_beside_computing_are_fewer(fake_broker: Broker, make_engine: MakeEngine) -> None:
    # Together all pad to the longest, for 98 ms more than in two batches.
    assert shared_prefills(fake_broker, make_engine, PADS.raised(97.0)) == [{"a", "c", "e"}, {"b", "d"}]
    fake_broker.client.flushdb()
    assert shared_prefills(fake_broker, make_engine, PADS.raised(99.0)) == [{"a", "b", "c", "d", "e"}]


def test_where_tokens_cost_nothing_all_share_one(fake_broker: Broker, make_engine: MakeEngine) -> None:
    assert shared_prefills(fake_broker, make_engine, FREE) == [{"a", "b", "c", "d", "e"}]


def test_where_packing_is_cheaper_neighbours_in_the_queue_share_one(
    fake_broker: Broker, make_engine: MakeEngine
) -> None:
    assert shared_prefills(fake_broker, make_engine, PACKS, rows=3) == [{"a", "b", "c"}, {"d", "e"}]
