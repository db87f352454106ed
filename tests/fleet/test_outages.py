"""What pauses, vanishes or fills up costs nobody a token."""

import json
import os
import signal
import time

import pytest
from tests.fleet.conftest import LEASE_MS, fleet_settings
from tests.waiting import until

from headrace.errors import OverloadedError
from headrace.keys import RequestStream
from headrace.moves import SubmitCall
from headrace.testing.chaos import prompts, submit
from headrace.testing.collector import Collector, outcomes
from headrace.testing.fleet import Fleet
from headrace.testing.servers import Server, free_port
from headrace.workers.model_store.store import ModelFolder

LEASE_S = LEASE_MS / 1000


def undisturbed(fleet: Fleet, requests: list[dict[str, object]]) -> list[tuple[tuple[int, ...], str, str]]:
    ids = submit(fleet, f"reference-{time.monotonic_ns()}", requests)
    collector = Collector(fleet.broker, ids)
    collector.wait(120)
    return outcomes(collector, ids)


def test_a_worker_that_sleeps_past_its_lease_and_wakes_writes_nothing(fleet: Fleet) -> None:
    requests = prompts(4, 60)
    wanted = undisturbed(fleet, requests)
    ids = submit(fleet, "sleepy", requests)
    collector = Collector(fleet.broker, ids)
    collector.wait_started()
    courier = fleet.pids("courier")[0]
    os.kill(courier, signal.SIGSTOP)
    try:
        until(lambda: fleet.broker.load()["running"] == 0)
        written = {name: fleet.broker.request_fields(name)["at"] for name in ids}
    finally:
        os.kill(courier, signal.SIGCONT)
    assert all(at.startswith(":") for at in written.values()), "rows without an owner cannot be written by it"
    collector.wait(120)
    assert outcomes(collector, ids) == wanted


def test_an_engine_that_hangs_is_replaced_and_the_texts_go_on(fleet: Fleet) -> None:
    requests = prompts(4, 60)
    wanted = undisturbed(fleet, requests)
    ids = submit(fleet, "hung", requests)
    collector = Collector(fleet.broker, ids)
    collector.wait_started()
    engine = fleet.pids("engine")[0]
    os.kill(engine, signal.SIGSTOP)
    collector.wait(120)
    assert outcomes(collector, ids) == wanted
    fleet.wait_ready()
    assert engine not in fleet.pids("engine")


def test_a_broker_gone_for_three_leases_costs_no_row(model: ModelFolder) -> None:
    options = ["--appendonly", "yes", "--appendfsync", "always"]
    with Server("redis", options, port=free_port()) as server:
        fleet = Fleet(fleet_settings(server.url, queue="outage"))
        with fleet:
            requests = prompts(6, 60)
            wanted = undisturbed(fleet, requests)
            ids = submit(fleet, "outage", requests)
            collector = Collector(fleet.broker, ids)
            collector.wait_started()
            server.kill()
            time.sleep(3 * LEASE_S)
            server.start()
            collector.wait(120)
            assert outcomes(collector, ids) == wanted
            attempts = [int(fleet.broker.request_fields(name)["attempts"]) for name in ids]
            assert attempts == [1] * len(ids), "a healthy worker lost its rows"


def test_a_full_broker_ends_what_runs_and_refuses_what_is_new(model: ModelFolder) -> None:
    with Server("valkey", port=free_port()) as server, Fleet(fleet_settings(server.url, queue="full")) as fleet:
        client = fleet.broker.client
        ids = submit(fleet, "full", prompts(6, 60))
        collector = Collector(fleet.broker, ids)
        collector.wait_started()
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) // 2)
        body = json.dumps({"id": "new", "prompt": "x"}).encode()
        call = SubmitCall("new", RequestStream("normal"), "json", body, 10, 60_000, "", fleet.settings)
        with pytest.raises(OverloadedError, match="memory"):
            fleet.broker.run(call)
        collector.wait(120)
        assert {transcript.done.reason for transcript in collector.transcripts.values() if transcript.done} == {
            "length"
        }
        client.config_set("maxmemory", 0)
        after = Collector(fleet.broker, submit(fleet, "after", prompts(1, 4)))
        after.wait(60)
