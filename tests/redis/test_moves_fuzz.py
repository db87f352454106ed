"""The short form of scripts/bench/moves_fuzz.py."""

import pytest
from tests.unit.contract.actors import Actors
from tests.unit.contract.fuzz import Fuzz

from headrace.broker import Broker


@pytest.mark.parametrize("seed", [1, 2])
def test_moves_sent_twice_or_late_change_nothing_more(broker: Broker, seed: int) -> None:
    done = Fuzz(broker, seed).run(500)
    assert done.num_repeated > 100
    assert min(done.calls[move] for move in ("submit", "admit", "dispatch", "claim", "emit", "cancel", "reap")) > 3


def test_a_repeated_submission_writes_so_that_a_wait_for_the_disk_covers_it(broker: Broker) -> None:
    actors = Actors(broker)
    actors.submit("a")
    before = broker.client.info("persistence")["rdb_changes_since_last_save"]
    assert actors.submit("a").verdict == "known"
    assert broker.client.info("persistence")["rdb_changes_since_last_save"] > before
