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
