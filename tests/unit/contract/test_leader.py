from tests.unit.contract.actors import Actors

from headrace.moves import HeartbeatCall


def test_one_scheduler_leads_until_it_resigns_or_is_silent(actors: Actors) -> None:
    assert [actors.broker.leadership.take("s1", 60_000), actors.broker.leadership.take("s2", 60_000)] == [True, False]
    assert actors.broker.leadership.take("s1", 50_000)
    assert 40_000 < actors.client.pttl("hr:{test}:leader") <= 50_000
    actors.broker.leadership.resign("s2")
    assert not actors.broker.leadership.take("s2", 60_000)
    actors.broker.leadership.resign("s1")
    assert actors.broker.leadership.take("s2", 60_000)


def test_a_heartbeat_does_not_cut_the_memory_of_a_claim_short(actors: Actors) -> None:
    actors.running("a")
    before = actors.broker.now_ms()
    assert actors.broker.run(HeartbeatCall("worker", "w1", "{}", 500)).now_ms >= before
    assert actors.client.pttl("hr:{test}:worker:w1") > 50_000
    actors.broker.run(HeartbeatCall("worker", "w2", "{}", 500))
    assert 0 < actors.client.pttl("hr:{test}:worker:w2") <= 500
    assert len(actors.client.zrange("hr:{test}:workers", 0, -1)) == 2


def test_a_heartbeat_forgets_those_of_its_kind_that_are_silent(actors: Actors) -> None:
    actors.broker.living.beat("scheduler", "s1", {"leads": True}, 60_000)
    actors.client.zadd("hr:{test}:schedulers", {"long gone": 1})
    actors.client.zadd("hr:{test}:workers", {"w1": 1})
    actors.broker.living.beat("scheduler", "s2", {"leads": False}, 60_000)
    assert [beat.name for beat in actors.broker.living.heartbeats("scheduler", 60_000)] == ["s1", "s2"]
    assert actors.client.zcard("hr:{test}:schedulers") == 2
    assert actors.client.zcard("hr:{test}:workers") == 1
    actors.broker.living.leave("scheduler", "s1")
    assert [beat.name for beat in actors.broker.living.heartbeats("scheduler", 60_000)] == ["s2"]
