"""One step of the scheduler at a time."""

import json

from headrace.broker import Broker
from headrace.keys import RequestStream
from headrace.moves import HeartbeatCall
from headrace.testing.words import word_tokenizer
from headrace.workers.scheduler.admission import Admitter
from headrace.workers.scheduler.process import Scheduler


def test_the_first_worker_is_known_to_the_batch_that_follows_its_first_heartbeat(fake_broker: Broker) -> None:
    def ask(request_id: str) -> None:
        stream = fake_broker.keys.requests(RequestStream("interactive"))
        fake_broker.client.xadd(stream, {"id": request_id, "json": json.dumps({"prompt": "one two"})})

    settings = fake_broker.settings
    scheduler = Scheduler(fake_broker, Admitter(word_tokenizer(64), "r1", settings), settings)
    ask("early")
    scheduler.step()
    details = '{"num_rows": 0, "max_rows": 8, "kv_tokens": 4096, "class": "card/r1/float32"}'
    fake_broker.run(HeartbeatCall("worker", "w1", details, settings.lease_ms, "card/r1/float32"))
    ask("late")
    scheduler.step()
    assert [(record.num_rows, record.worker_class) for record in fake_broker.costs.batch_log(10)] == [
        (1, "card/r1/float32"),
        (1, ""),
    ]


def test_ids_without_a_request_starve_nobody(fake_broker: Broker) -> None:
    settings = fake_broker.settings
    fake_broker.client.zadd(fake_broker.keys.ready, {f"ghost{number}": -1_000.0 for number in range(600)})
    stream = fake_broker.keys.requests(RequestStream("normal"))
    fake_broker.client.xadd(stream, {"id": "a", "json": json.dumps({"prompt": "one two"})})
    scheduler = Scheduler(fake_broker, Admitter(word_tokenizer(64), "r1", settings), settings)
    for _ in range(20):
        scheduler.step()
    assert fake_broker.request_fields("a")["state"] == "batched"
    assert fake_broker.client.zcard(fake_broker.keys.ready) == 0
