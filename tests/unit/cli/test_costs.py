"""``headrace costs``, as a person and as a script sees it."""

import json

import pytest
from tests.unit.cli.conftest import Headrace

from headrace.broker import Broker
from headrace.moves import HeartbeatCall
from headrace.workers.costs.table import CostTable

TABLE = CostTable((4, 64), (1, 8), ((31.25, 62.0), (158.0, 1054.0)), (8, 256), (46.0, 542.0))


@pytest.fixture
def classes(queue: Broker) -> list[str]:
    """A class with costs, one without, and one with costs that nobody can read."""
    names = ["gpu/abc/float16", "cpu-x2/abc/float32", "older/abc/float32"]
    for name in names:
        queue.run(HeartbeatCall("worker", name, "{}", 60_000, name))
    queue.client.hset(queue.keys.cost, mapping={names[0]: TABLE.encode(), names[2]: b"\x93\x07"})
    return names


def test_people_see_the_table_of_every_class(headrace: Headrace, classes: list[str]) -> None:
    status, out, _ = headrace("costs")
    assert status == 0
    assert all(name in out for name in classes)
    for shown in ("31.2 ms", "1054 ms", "542 ms", "8 rows", "256"):
        assert shown in out
    assert "none are published yet" in out
    assert "not a cost table" in out


def test_scripts_get_all_of_it_as_json(headrace: Headrace, classes: list[str]) -> None:
    found = {row["name"]: row for row in json.loads(headrace("costs", "--json")[1])}
    assert set(found) == set(classes)
    assert found[classes[0]]["table"]["cost_ms"] == [[31.25, 62.0], [158.0, 1054.0]]
    assert found[classes[0]]["table"]["packed_tokens"] == [8, 256]
    assert (found[classes[1]]["table"], found[classes[1]]["problem"]) == (None, "")
    assert found[classes[0]]["silent_ms"] >= 0


def test_a_queue_without_workers_says_so(headrace: Headrace, queue: Broker) -> None:
    assert "no class of workers" in headrace("costs")[1]
    status, _, err = headrace("costs", "measure")
    assert (status, "no worker lives" in err) == (2, True)


def test_measure_asks_one_class_or_all(headrace: Headrace, queue: Broker, classes: list[str]) -> None:
    queue.client.zadd(queue.keys.classes, {classes[2]: 1})  # long silent
    assert headrace("costs", "measure", "--class", classes[0])[:2] == (0, f"asked {classes[0]}\n")
    assert queue.run(HeartbeatCall("worker", "w", "{}", 60_000, classes[0])).measure_ms > 0
    assert queue.run(HeartbeatCall("worker", "v", "{}", 60_000, classes[1])).measure_ms == 0
    assert sorted(headrace("costs", "measure")[1].split("\n")) == ["", f"asked {classes[1]}", f"asked {classes[0]}"]
    status, _, err = headrace("costs", "measure", "--class", classes[2])
    assert status == 2
    assert classes[2] in err
