"""A worker's costs from its first start on: measured, published, refined, logged, kept, measured again when asked."""

from functools import partial
from pathlib import Path

from tests.fleet.conftest import fleet_settings
from tests.waiting import until

from headrace.broker import Broker
from headrace.producer import Client
from headrace.testing.fleet import Fleet
from headrace.testing.servers import Server
from headrace.workers.costs.table import CostTable
from headrace.workers.model_store.store import ModelFolder


def published(broker: Broker) -> CostTable:
    (table,) = broker.costs.tables().values()
    return CostTable.decode(table)


def num_measured(fleet: Fleet) -> int:
    return fleet.log.count("costs measured")


def kept_measurement(fleet: Fleet, folder: Path, num_before: int = 0, before: bytes | None = None) -> Path:
    """Wait for costs on file other than those before; a busy machine's are not kept, and are asked for again."""
    while True:
        until(partial(lambda num: num_measured(fleet) > num, num_before))
        found = list(folder.glob("*"))
        if found and found[0].read_bytes() != before:
            return found[0]
        num_before = num_measured(fleet)
        fleet.broker.costs.request_measurement()


def test_a_fleet_measures_once_and_then_knows_what_its_batches_cost(model: ModelFolder, tmp_path: Path) -> None:
    with Server("valkey", port=None) as server:
        # The model by its path, so that the cache is the test's own.
        settings = fleet_settings(server.url, model=str(model.path), cache_dir=tmp_path, measure_ms=800)
        with Fleet(settings) as fleet:
            broker = fleet.broker
            kept = kept_measurement(fleet, tmp_path / "costs")
            until(lambda: bool(broker.costs.tables()))
            (worker,) = broker.living.workers(60_000)
            assert list(broker.costs.tables()) == [worker.worker_class] == broker.costs.living()
            assert worker.worker_class.endswith(f"/{model.revision}/float32")
            table = published(broker)
            assert 0 < table.packed_cost(8) < table.packed_cost(256)
            assert 0 < table.cost(4, 1) < table.cost(64, 4)
            with Client(settings) as client:
                handles = [client.submit("Water runs " * (1 + index % 7), max_tokens=2) for index in range(12)]
                for handle in handles:
                    handle.result(timeout_s=60)
            until(lambda: all(record.run for record in broker.costs.batch_log(100)))
            records = broker.costs.batch_log(100)
            assert sum(record.num_rows for record in records) == 12
            for record in records:
                assert record.worker_class == worker.worker_class
                assert record.run is not None
                assert (record.run.worker, record.run.num_rows) == (worker.worker, record.num_rows)
                assert 0 < record.run.num_tokens <= record.num_tokens
                assert record.run.cost_ms > 0 < record.predicted_ms
            before, num_before = kept.read_bytes(), num_measured(fleet)
            assert broker.costs.request_measurement() == [worker.worker_class]
            assert kept_measurement(fleet, tmp_path / "costs", num_before, before) == kept
        with Fleet(settings) as fleet:
            assert "costs read from" in fleet.log
            assert "costs measured" not in fleet.log
