from tests.unit.contract.actors import Actors

from headrace.moves import TOTALS, RecountCall


def test_wrong_totals_are_replaced_once_and_only_where_they_are_what_was_seen(actors: Actors) -> None:
    actors.queued("a")
    before = {name: actors.broker.load()[name] for name in TOTALS}
    wrong = before | {"running": 7, "running_tokens": 70}
    actors.client.hset("hr:{test}:load", mapping=wrong)
    assert not actors.broker.run(RecountCall(before, before | {"queued": 5}))
    assert {name: actors.broker.load()[name] for name in TOTALS} == wrong
    assert actors.broker.run(RecountCall(wrong, before))
    assert not actors.broker.run(RecountCall(wrong, before)), "sent twice it finds them right"
