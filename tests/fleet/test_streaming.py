"""Tokens stream: each is out before the rest is computed, and requests fuse into what runs."""

import json
import subprocess

from tests.waiting import LIMIT_S, until

from headrace.testing.chaos import submit
from headrace.testing.collector import Collector
from headrace.testing.fleet import Fleet

REDIS_CLI_EXAMPLE = '{"id":"a1","prompt":"The capital of France is","max_tokens":8,"temperature":0}'


def redis_cli(fleet: Fleet, *arguments: str) -> list[str]:
    socket = fleet.settings.redis_url.removeprefix("unix://")
    done = subprocess.run(
        ["redis-cli", "-s", socket, *arguments], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.splitlines()


def test_redis_cli_alone_enqueues_and_reads_json_token_by_token(fleet: Fleet) -> None:
    keys = fleet.broker.keys
    redis_cli(fleet, "XADD", keys.prefix + "requests", "*", "json", REDIS_CLI_EXAMPLE)
    text, position, done = "", "0", None
    while done is None:
        lines = redis_cli(fleet, "XREAD", "BLOCK", "0", "STREAMS", keys.out("a1"), position)
        for entry, encoding, body in zip(lines[1::3], lines[2::3], lines[3::3], strict=True):
            assert encoding == "json"
            chunk = json.loads(body)
            text, position, done = text + chunk["text"], entry, chunk.get("done")
    assert text.startswith(" Paris")
    assert done["reason"] == "length"
    assert done["usage"] == {"prompt_tokens": 5, "completion_tokens": 8}


def test_a_channel_carries_the_same_chunks_for_those_who_subscribed_before(fleet: Fleet) -> None:
    channel = fleet.broker.client.pubsub(ignore_subscribe_messages=True)
    channel.subscribe(fleet.broker.keys.out("heard-0"))
    channel.get_message(timeout=5)
    ids = submit(fleet, "heard", [{"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}])
    collector = Collector(fleet.broker, ids)
    collector.wait(LIMIT_S)
    heard = []
    while (message := channel.get_message(timeout=1)) is not None:
        heard.append(json.loads(message["data"]))
    channel.close()
    assert [token for chunk in heard for token in chunk["ids"]] == collector.transcripts["heard-0"].ids
    assert heard[-1]["done"]["reason"] == "length"


def test_tokens_are_out_before_the_rest_is_computed(fleet: Fleet) -> None:
    collector = Collector(
        fleet.broker, submit(fleet, "long", [{"prompt": "Count:", "max_tokens": 60, "ignore_eos": True}])
    )
    collector.wait(LIMIT_S)
    assert len(fleet.broker.chunks_after("long-0", 0, 0)) > 12, "tokens came in lumps"


def test_a_short_request_that_comes_while_a_long_one_runs_ends_first(fleet: Fleet) -> None:
    long = Collector(fleet.broker, submit(fleet, "slow", [{"prompt": "Count:", "max_tokens": 80, "ignore_eos": True}]))
    long.wait_started()
    short = Collector(fleet.broker, submit(fleet, "quick", [{"prompt": "Hello", "max_tokens": 4, "ignore_eos": True}]))
    short.wait(LIMIT_S)
    long.wait(LIMIT_S)
    ended_ms = {name: int(fleet.broker.request_fields(name)["t_done"]) for name in ("quick-0", "slow-0")}
    assert ended_ms["quick-0"] < ended_ms["slow-0"]
    assert len(long.transcripts["slow-0"].ids) == 80


def test_the_same_seed_gives_the_same_text_whatever_else_runs(fleet: Fleet) -> None:
    request: dict[str, object] = {"prompt": "In the beginning", "max_tokens": 24, "temperature": 0.9, "seed": 11}
    alone = Collector(fleet.broker, submit(fleet, "seeded", [request]))
    alone.wait(LIMIT_S)
    others: dict[str, object] = {"prompt": "Count:", "max_tokens": 40, "temperature": 0.7}
    crowd = Collector(fleet.broker, submit(fleet, "crowd", [others, request, others, request]))
    crowd.wait(LIMIT_S)
    wanted = alone.transcripts["seeded-0"].outcome
    assert crowd.transcripts["crowd-1"].outcome == wanted
    assert crowd.transcripts["crowd-3"].outcome == wanted


def test_a_cancelled_request_stops_running(fleet: Fleet) -> None:
    collector = Collector(
        fleet.broker, submit(fleet, "gone", [{"prompt": "Count:", "max_tokens": 1500, "ignore_eos": True}])
    )
    collector.wait_started()
    fleet.broker.client.xadd(fleet.broker.keys.prefix + "requests", {"cancel": "gone-0"})
    collector.wait(LIMIT_S)
    done = collector.transcripts["gone-0"].done
    assert done is not None
    assert done.reason == "cancelled"
    until(lambda: not any(worker.num_rows for worker in fleet.broker.living.workers(5_000)))


def test_a_running_request_stops_at_its_deadline(fleet: Fleet) -> None:
    request: dict[str, object] = {"prompt": "Count:", "max_tokens": 1500, "ignore_eos": True, "deadline_ms": 800}
    collector = Collector(fleet.broker, submit(fleet, "late", [request]))
    collector.wait(LIMIT_S)
    transcript = collector.transcripts["late-0"]
    assert transcript.done is not None
    assert transcript.done.reason == "expired"
    assert len(transcript.ids) < 1500
    fields = fleet.broker.request_fields("late-0")
    assert int(fields["t_done"]) >= int(fields["deadline"])
