from dataclasses import replace

from tests.unit.contract.actors import NORMAL, Actors

from headrace.keys import Lane, RequestStream
from headrace.moves import AdmitCall
from headrace.wire import Failure

REFUSAL = Failure("invalid", "top_k: must be at least 0", "top_k").encode("json")


def scores(actors: Actors) -> dict[str, float]:
    return {i.decode(): score for i, score in actors.client.zrange("hr:{test}:ready", 0, -1, withscores=True)}


def reason(actors: Actors, request_id: str) -> str:
    done = actors.last(request_id).done
    assert done is not None
    return done.reason


def test_entries_become_queued_requests_in_their_order(actors: Actors) -> None:
    for request_id in "cab":
        actors.xadd(request_id)
    assert actors.admit(deadline_ms=0, reply_to="r") == ["queued"] * 3
    assert [r.request_id for r in actors.broker.window(10).requests] == ["c", "a", "b"]
    assert actors.client.xlen("hr:{test}:requests") == 0
    fields = actors.broker.request_fields("a")
    assert (fields["state"], fields["reply"], fields["prompt"], fields["cost"], fields["ttl"]) == (
        "queued", "r", "4", "10", "60000",
    )  # fmt: skip
    assert actors.client.get("hr:{test}:job:a") == b"job of a"


def test_an_admission_sent_twice_counts_once(actors: Actors) -> None:
    actors.xadd("a")
    call = AdmitCall(NORMAL, actors.judged(), actors.settings)
    assert [actors.broker.run(call), actors.broker.run(call)] == [["queued"], ["gone"]]
    assert actors.broker.load()["queued"] == 1


def test_two_entries_with_one_id_make_one_request(actors: Actors) -> None:
    actors.xadd("a"), actors.xadd("a")
    assert actors.admit() == ["queued", "duplicate"]
    actors.xadd("a")
    assert actors.admit() == ["duplicate"]
    assert actors.broker.load()["queued"] == 1


def test_a_foreign_entry_with_the_id_of_a_submission_does_not_take_its_place(actors: Actors) -> None:
    actors.xadd("a")
    actors.submit("a")
    actors.submit("b")
    actors.xadd("b")
    assert actors.admit() == ["duplicate", "queued", "queued", "duplicate"]


def test_a_submission_keeps_its_place_and_pays_what_it_really_costs(actors: Actors) -> None:
    actors.submit("a", cost=100)
    actors.limit(max_queued_requests=1, max_queued_tokens=50)
    assert actors.admit(cost_tokens=40) == ["queued"]
    load = actors.broker.load()
    assert (load["queued"], load["queued_tokens"]) == (1, 40)


def test_an_invalid_request_gets_its_verdict_as_a_terminal_chunk(actors: Actors) -> None:
    actors.xadd("a"), actors.submit("b")
    assert actors.admit(refusal=REFUSAL, job=b"", reply_to="r") == ["invalid", "invalid"]
    for request_id in "ab":
        done = actors.last(request_id).done
        assert done is not None
        assert done.error == Failure("invalid", "top_k: must be at least 0", "top_k")
    assert actors.broker.load()["queued"] == 0
    assert actors.client.xlen("hr:{test}:reply:r") == 2


def test_an_invalid_request_with_the_id_of_a_live_one_does_not_disturb_it(actors: Actors) -> None:
    actors.queued("a")
    actors.xadd("a")
    assert actors.admit(refusal=REFUSAL) == ["duplicate"]
    assert actors.state("a") == "queued"


def test_a_deadline_counts_from_the_entrys_own_time(actors: Actors) -> None:
    now = actors.broker.now_ms()
    actors.xadd("a", entry=f"{now - 10_000}-0")
    actors.xadd("b")
    assert actors.admit(deadline_ms=5_000) == ["expired", "queued"]
    assert reason(actors, "a") == "expired"


def test_a_backlog_of_too_many_requests_refuses_plain_entries_by_name(actors: Actors) -> None:
    actors.limit(max_queued_requests=2)
    actors.xadd("a"), actors.xadd("b"), actors.xadd("c")
    assert actors.admit() == ["queued", "queued", "overloaded"]
    done = actors.last("c").done
    assert done is not None
    assert done.error is not None
    assert done.error.code == "overloaded"
    assert "2 requests, 20 tokens" in done.error.message


def test_a_backlog_of_too_many_tokens_refuses_plain_entries_and_lets_smaller_ones_in(actors: Actors) -> None:
    actors.limit(max_queued_tokens=15)
    for request_id in "abc":
        actors.xadd(request_id)
    a, b, c = actors.judged()
    entries = [a, replace(b, cost_tokens=6), replace(c, cost_tokens=5)]
    assert actors.broker.run(AdmitCall(NORMAL, entries, actors.settings)) == ["queued", "overloaded", "queued"]


def test_a_cancellation_ends_a_request_wherever_it_is(actors: Actors) -> None:
    actors.queued("q")
    actors.dispatched("d")
    actors.submit("s", stream=RequestStream("bulk"))
    for request_id in "qds":
        actors.xadd_cancel(request_id)
    assert actors.admit() == ["cancelled"] * 3
    assert {reason(actors, i) for i in "qds"} == {"cancelled"}
    assert actors.admit(RequestStream("bulk")) == []


def test_a_cancellation_that_comes_first_waits_for_its_request(actors: Actors) -> None:
    actors.xadd_cancel("a"), actors.xadd("a"), actors.xadd("b"), actors.xadd_cancel("b")
    assert actors.admit() == ["cancelled", "cancelled", "queued", "cancelled"]
    assert (reason(actors, "a"), reason(actors, "b")) == ("cancelled", "cancelled")
    assert actors.client.pttl("hr:{test}:request:a") <= 60_000


def test_a_cancellation_makes_room_for_the_entries_behind_it(actors: Actors) -> None:
    actors.limit(max_queued_requests=1)
    actors.queued("a")
    actors.xadd_cancel("a"), actors.xadd("b")
    assert actors.admit() == ["cancelled", "queued"]


def test_a_cancellation_sent_twice_leaves_one_tombstone(actors: Actors) -> None:
    actors.xadd_cancel("a"), actors.xadd_cancel("a")
    actors.admit()
    assert actors.state("a") == "tomb"
    assert actors.broker.load()["queued"] == 0


def test_flows_share_by_tokens_whoever_comes_first(actors: Actors) -> None:
    # Three requests of t1 in a row, then one each of t2 and of heavier t3: nobody waits for t1's whole backlog.
    actors.limit(tenants={"t1": 1.0, "t2": 1.0, "t3": 4.0}, lane_offset_tokens={"normal": 0})
    for tenant, request_id in (("t1", "a"), ("t1", "b"), ("t1", "c"), ("t2", "d"), ("t3", "e"), ("t3", "f")):
        stream = RequestStream("normal", tenant)
        actors.xadd(request_id, stream)
        actors.admit(stream, cost_tokens=100)
    assert scores(actors) == {"a": 0, "b": 100, "c": 200, "d": 0, "e": 0, "f": 25}


def test_a_flow_that_was_idle_starts_at_the_virtual_time_and_not_in_the_past(actors: Actors) -> None:
    actors.limit(lane_offset_tokens={"normal": 0})
    actors.queued("a", "b", cost_tokens=100)
    actors.dispatch("b")
    stream = RequestStream("normal", "t")
    actors.xadd("c", stream)
    actors.admit(stream)
    assert scores(actors)["c"] == 100


def test_lanes_have_a_head_start_and_flows_of_their_own(actors: Actors) -> None:
    actors.limit(lane_offset_tokens={"interactive": 0, "normal": 1_000, "bulk": 50_000})
    for lane in ("bulk", "normal", "interactive"):
        stream = RequestStream(lane)
        actors.xadd(lane, stream)
        actors.admit(stream, cost_tokens=10)
    assert scores(actors) == {"interactive": 0, "normal": 1_000, "bulk": 50_000}


def test_a_score_never_changes_again(actors: Actors) -> None:
    actors.queued("a", "b")
    before = scores(actors)
    actors.dispatch("b"), actors.claim("w1")
    actors.make_due("b")
    actors.reap()
    assert scores(actors) == before


def test_a_request_without_an_id_of_its_own_is_named_by_the_caller_and_others_go_on(actors: Actors) -> None:
    actors.client.xadd("hr:{test}:requests", {"json": "nonsense", "id": "from-the-entry"})
    actors.xadd("b")
    first, second = actors.judged()
    bad = replace(first, refusal=REFUSAL, job=b"")
    assert actors.broker.run(AdmitCall(NORMAL, [bad, second], actors.settings)) == ["invalid", "queued"]


def test_a_request_that_was_not_tokenised_because_it_came_too_late_expires(actors: Actors) -> None:
    # By the admitting scheduler's reading of the clock, which may be ahead of the script's.
    actors.xadd("a")
    assert actors.admit(deadline_ms=60_000, job=b"", cost_tokens=0, prompt_tokens=0) == ["expired"]
    assert reason(actors, "a") == "expired"
    assert actors.broker.load()["queued"] == 0


def test_lanes_with_a_backlog_share_a_window_by_their_weights(actors: Actors) -> None:
    actors.limit(lane_offset_tokens={}, lane_weights={"interactive": 4.0, "normal": 2.0, "bulk": 1.0})
    lanes: tuple[Lane, ...] = ("bulk", "normal", "interactive")
    for lane in lanes:
        for i in range(60):
            actors.xadd(f"{lane}{i}", RequestStream(lane))
        actors.admit(RequestStream(lane))
    window = actors.broker.window(70).requests
    shares = {lane: sum(r.request_id.startswith(lane) for r in window) for lane in lanes}
    assert abs(shares["interactive"] - 40) <= 1
    assert abs(shares["normal"] - 20) <= 1
    assert abs(shares["bulk"] - 10) <= 1


def test_a_lane_s_head_start_ends_when_others_have_waited_for_as_many_tokens(actors: Actors) -> None:
    actors.limit(lane_offset_tokens={"bulk": 100}, lane_weights={})
    actors.xadd("old", RequestStream("bulk"))
    actors.admit(RequestStream("bulk"))
    actors.queued(*(f"r{i}" for i in range(20)), cost_tokens=10)
    order = [r.request_id for r in actors.broker.window(30).requests]
    assert order.index("old") in (10, 11)
