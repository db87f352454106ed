import json

import pytest
from tests.unit.contract.actors import Actors

from headrace.moves import HeartbeatCall

SOUND = {"max_rows": 8, "kv_tokens": 4096, "num_rows": 1}


@pytest.mark.parametrize(
    "nonsense",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        json.dumps(SOUND | {"max_rows": None}),
        json.dumps(SOUND | {"kv_tokens": "many"}),
        json.dumps(SOUND | {"max_rows": 0}),
        json.dumps(SOUND | {"kv_tokens": -5}),
        '{"max_rows": 1e999, "kv_tokens": 1, "num_rows": 0}',
        "\udcff",
    ],
)
def test_a_worker_whose_heartbeat_cannot_be_read_is_passed_over(actors: Actors, nonsense: str) -> None:
    actors.broker.run(HeartbeatCall("worker", "sound", json.dumps(SOUND), 60_000))
    now_ms = actors.broker.now_ms()
    actors.client.zadd("hr:{test}:workers", {b"odd": now_ms, b"\xff": now_ms})
    actors.client.hset("hr:{test}:worker:odd", "info", nonsense.encode(errors="surrogateescape"))
    for _ in range(2):
        assert [worker.worker for worker in actors.broker.living.workers(60_000)] == ["sound"]
