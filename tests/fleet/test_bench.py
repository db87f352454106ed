"""The throughput's requests through a whole fleet on this machine's CPU, with a model that is next to nothing."""

from pathlib import Path

import torch
from tests.unit.bench.conftest import TINY

from headrace.bench import redis_cases
from headrace.bench.bench import Bench, Effort
from headrace.bench.machine import Machine
from headrace.bench.run import run
from headrace.testing.rows import Report


def test_every_token_of_a_fleet_reaches_a_reader_and_is_set_beside_the_engine_alone(tmp_path: Path) -> None:
    machine, report = Machine(torch.device("cpu"), torch.float32), Report("tests")
    with Bench(machine, {"L8B": TINY}, Effort(rounds=1, num_requests=2), tmp_path) as bench:
        assert run(bench, redis_cases.cases("L8B"), report) == []
        alone = bench.results["throughput/L8B", "output_tokens_per_s"]
    (row,) = report.rows
    assert (row["case"], row["peer"], row["peer_value"]) == ("throughput-redis/L8B", "the engine alone", alone)
    assert isinstance(row["value"], float)
    assert row["value"] > 10
