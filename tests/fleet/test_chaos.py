"""Kill anything: no request lost, no token lost or repeated, and the text goes on where it stopped."""

import pytest

from headrace.testing.chaos import kill_while_streaming, prompts
from headrace.testing.fleet import Fleet, Part

NUM_REQUESTS = 20
NUM_TOKENS = 40
PARTS: tuple[Part, ...] = ("courier", "engine", "scheduler", "worker")


@pytest.mark.timeout(400)
def test_texts_survive_the_death_of_every_part(fleet: Fleet) -> None:
    lease_s = fleet.settings.lease_ms / 1000
    num_dead = fleet.broker.load()["dead"]
    kills = list(kill_while_streaming(fleet, PARTS, prompts(NUM_REQUESTS, NUM_TOKENS)))
    assert [kill.part for kill in kills] == list(PARTS)
    for kill in kills:
        assert kill.silence_s < lease_s + 5, kill
    assert fleet.broker.load()["dead"] == num_dead, "a request that made progress was taken for poison"
