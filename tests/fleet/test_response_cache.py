"""The response cache of a fleet that writes: the same text without a worker, and only where it must be alike."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.fleet.conftest import fleet_settings
from tests.waiting import until

from headrace.producer import Client
from headrace.producer.outcome import Result
from headrace.testing.fleet import Fleet
from headrace.testing.servers import Server
from headrace.workers.model_store.store import ModelFolder

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def fleet(model: ModelFolder) -> Iterator[Fleet]:
    with Server("valkey") as server, Fleet(fleet_settings(server.url, queue="cached", cache_entries=50)) as fleet:
        yield fleet


def ask(fleet: Fleet, request_id: str, **fields: Any) -> tuple[Result, int]:
    """A result, and how often a worker has claimed the request."""
    with Client(fleet.settings, timeout_s=60) as client:
        result = client.submit(PROMPT, request_id=request_id, max_tokens=6, **fields).result()
    return result, int(fleet.broker.request_fields(request_id)["attempts"])


def test_a_text_that_must_come_out_alike_is_computed_once(fleet: Fleet) -> None:
    asked: tuple[tuple[str, dict[str, Any]], ...] = (
        ("greedy", {"temperature": 0}),
        ("seeded", {"seed": 7}),
        ("told", {"seed": 8, "logprobs": 2}),
    )
    for name, fields in asked:
        kept = fleet.broker.cache_totals()["entries"]
        first, claims = ask(fleet, f"{name}-1", **fields)
        assert claims == 1
        until(lambda kept=kept: fleet.broker.cache_totals()["entries"] > kept)  # type: ignore[misc]
        again, claims = ask(fleet, f"{name}-2", **fields)
        assert claims == 0
        assert (again.text, again.ids, again.reason, again.usage) == (first.text, first.ids, first.reason, first.usage)
        assert (again.logprobs, again.cumulative_logprob) == (first.logprobs, first.cumulative_logprob)
        echoed, claims = ask(fleet, f"{name}-3", echo=True, **fields)
        assert (claims, echoed.text, echoed.echo and echoed.echo.text) == (0, first.text, PROMPT)
        with Client(fleet.settings, timeout_s=20) as client:
            handle = client.attach(f"{name}-2")
            assert "".join(handle.text()) == first.text
            assert [token for chunk in handle.stream(after=6) for token in chunk.ids] == []
            assert len(fleet.broker.chunks_after(f"{name}-2", 0, 0)) == 1


def test_what_may_come_out_otherwise_is_computed_each_time(fleet: Fleet) -> None:
    before = fleet.broker.cache_totals()["entries"]
    for number in range(2):
        assert ask(fleet, f"drawn-{number}")[1] == 1
        assert ask(fleet, f"fresh-{number}", temperature=0, stop="zzz", cache=False)[1] == 1
    assert fleet.broker.cache_totals()["entries"] == before
