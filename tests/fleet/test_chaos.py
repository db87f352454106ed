"""Kill anything: no request lost, no token lost or repeated, and the text goes on where it stopped."""

import pytest

from headrace.testing.chaos import kill_while_streaming, prompts
from headrace.testing.fleet import Fleet, Part

NUM_REQUESTS = 20
NUM_TOKENS = 40
PARTS: tuple[Part, ...] = ("courier", "engine", "scheduler", "worker")


@pytest.mark.timeout(400)
def test_texts_survive_the_death_of_every_part(fleet: Fleet) -> None:
    num_dead = fleet.broker.load()["dead"]
    kills = list(kill_while_streaming(fleet, PARTS, prompts(NUM_REQUESTS, NUM_TOKENS)))
    assert [kill.part for kill in kills] == list(PARTS)
    # How long each silence was is for scripts/bench/chaos.py: a time on a busy machine proves nothing.
    assert fleet.broker.load()["dead"] == num_dead, "a request that made progress was taken for poison"
