"""Terminal chunks that the broker writes by hand, in Lua, are those that the workers' encoder would have written."""

import pytest
from tests.unit.contract.actors import Actors

from headrace.wire import Chunk, Done, Encoding, Failure, Usage

SIZES = [0, 1, 31, 32, 127, 128, 255, 256, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
MESSAGES = [
    "short",
    "x" * 31,
    "x" * 32,
    "x" * 255,
    "x" * 256,
    "π" * 4_000,
    'quo"te \\ / \n\t\x00\x7f',
    "日本語 🙂 é",
    "",
]


@pytest.mark.parametrize("encoding", ["json", "mp"])
def test_integers_of_every_size_come_out_as_they_are(actors: Actors, encoding: Encoding) -> None:
    for size in SIZES:
        request_id = f"a{size}"
        actors.submit(request_id, encoding=encoding)
        fields = {"at": f":0:{size}", "o": size, "prompt": size}
        actors.client.hset(f"hr:{{test}}:request:{request_id}", mapping=fields)
        actors.cancel(request_id)
        ((entry, stored),) = actors.client.xrange(f"hr:{{test}}:out:{request_id}")
        expected = Chunk(size, size, (), "", Done("cancelled", Usage(size, size)))
        assert entry == f"{size}-2".encode()
        assert Chunk.decode(stored[encoding.encode()]) == Chunk.decode(expected.encode(encoding)) == expected
        actors.client.delete(f"hr:{{test}}:request:{request_id}")  # its numbers are made up: nothing to audit


@pytest.mark.parametrize("encoding", ["json", "mp"])
def test_a_refusal_of_any_length_and_script_comes_out_as_it_is(actors: Actors, encoding: Encoding) -> None:
    for message in MESSAGES:
        failure = Failure("invalid", message, "prompt")
        actors.client.xadd("hr:{test}:requests", {"id": f"a{MESSAGES.index(message)}", encoding: "?"})
        actors.admit(refusal=failure.encode(encoding))
        expected = Chunk(0, 0, (), "", Done("error", Usage(4, 0), failure))
        assert actors.last(f"a{MESSAGES.index(message)}") == expected == Chunk.decode(expected.encode(encoding))


@pytest.mark.parametrize("encoding", ["json", "mp"])
def test_failures_that_the_broker_words_itself_decode(actors: Actors, encoding: Encoding) -> None:
    actors.submit("lost", encoding=encoding)
    actors.client.delete("hr:{test}:requests")
    actors.make_due("lost")
    actors.reap()
    actors.limit(max_queued_requests=1)
    actors.queued("a")
    actors.client.xadd("hr:{test}:requests", {"id": "overloaded", encoding: "?"})
    actors.admit()
    for code in ("lost", "overloaded"):
        done = actors.last(code).done
        assert done is not None
        assert done.error is not None
        assert (done.reason, done.error.code, done.error.field) == ("error", code, "")
        assert len(done.error.message) > 31
