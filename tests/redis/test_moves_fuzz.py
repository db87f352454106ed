"""The short form of scripts/bench/moves_fuzz.py."""

import pytest
from tests.unit.contract.actors import Actors
from tests.unit.contract.fuzz import Fuzz

from headrace.broker import Broker
from headrace.moves import DispatchCall


@pytest.mark.parametrize("seed", [1, 2])
def test_moves_sent_twice_or_late_change_nothing_more(broker: Broker, seed: int) -> None:
    done = Fuzz(broker, seed).run(500)
    assert done.num_repeated > 100
    assert (
        min(done.calls[move] for move in ("submit", "admit", "dispatch", "claim", "emit", "cancel", "reap", "remember"))
        > 3
    )


def test_a_repeated_submission_writes_so_that_a_wait_for_the_disk_covers_it(broker: Broker) -> None:
    actors = Actors(broker)
    actors.submit("a")
    before = broker.client.info("persistence")["rdb_changes_since_last_save"]
    assert actors.submit("a").verdict == "known"
    assert broker.client.info("persistence")["rdb_changes_since_last_save"] > before


def test_calls_sent_together_are_carried_out_each_for_itself_and_survive_a_server_that_forgot_its_scripts(
    broker: Broker,
) -> None:
    actors = Actors(broker)
    actors.queued("a", "b", "c", "d")
    calls = [DispatchCall([name], broker.settings.model_copy(update={"max_backlog_batches": 3})) for name in "abcd"]
    outcomes = broker.run_all(calls[:2])
    broker.client.script_flush()
    broker.client.register_script("return 1")()
    outcomes += broker.run_all(calls[2:])
    assert [outcome.full for outcome in outcomes] == [False, False, False, True]
    assert broker.run_all([]) == []
    assert [actors.state(name) for name in "abcd"] == ["batched", "batched", "batched", "queued"]
