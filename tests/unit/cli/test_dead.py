"""``headrace dead``: requests given up as poison can be looked at, sent again and forgotten."""

import json
from collections.abc import Sequence

import pytest
from tests.unit.cli.conftest import Headrace, bodies

from headrace.broker import Broker
from headrace.encoder_job import EncoderJob, EncoderParams, pack_ids
from headrace.job import Job, SamplingParams, child_seed
from headrace.keys import RequestStream

_PARAMS = SamplingParams(
    max_tokens=9, min_tokens=1, temperature=0.5, top_k=40, top_p=0.9, min_p=0.0, seed=7, stop=("x",),
    stop_token_ids=(2,), ignore_eos=True, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=-0.5,
    logit_bias=((5, -1.0),), bad_words=((1, 2), (3,)), logprobs=2,
)  # fmt: skip
_FIELDS = {"max_tokens": 9, "min_tokens": 1, "temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "seed": 7,
           "stop": ["x"], "stop_token_ids": [2], "ignore_eos": True, "repetition_penalty": 1.5, "presence_penalty": 0.5,
           "frequency_penalty": -0.5, "bad_words": [[1, 2], [3]], "logprobs": 2}  # fmt: skip


def _bury(queue: Broker, *ids: str, job: bytes | None = None) -> None:
    body = Job((1, 2, 3), _PARAMS, "rev1").encode() if job is None else job
    for request_id in ids:
        queue.client.xadd(queue.keys.dead, {"v": 1, "id": request_id, "why": "lost 3 workers", "job": body})


def _serve(queue: Broker, revision: str) -> None:
    details = {"revision": revision, "max_rows": 1, "kv_tokens": 1, "num_rows": 0}
    queue.client.hset(queue.keys.worker("w"), "info", json.dumps(details))
    queue.client.zadd(queue.keys.workers, {"w": queue.now_ms()})


def _ids(queue: Broker) -> list[str]:
    return [entry.fields[b"id"].decode() for entry in queue.dead_requests(100)]


def test_list_shows_the_newest_first(headrace: Headrace, queue: Broker) -> None:
    _bury(queue, "a", "b")
    lines = headrace("dead", "list")[1].splitlines()
    assert [line.split("  ")[1:] for line in lines] == [["b", "lost 3 workers"], ["a", "lost 3 workers"]]


def test_list_as_json_holds_the_whole_job(headrace: Headrace, queue: Broker) -> None:
    _bury(queue, "a")
    _bury(queue, "b", job=b"")
    lost, whole = (json.loads(line) for line in headrace("dead", "list", "--json")[1].splitlines())
    assert (whole["id"], whole["why"]) == ("a", "lost 3 workers")
    assert whole["job"] == {
        "prompt_ids": [1, 2, 3],
        "params": _FIELDS | {"logit_bias": [[5, -1.0]]},
        "revision": "rev1",
    }
    assert lost["job"] is None


def test_requests_to_encoders_are_listed_with_their_texts_and_sent_again(headrace: Headrace, queue: Broker) -> None:
    params = EncoderParams("max", dimensions=2, floats=True)
    job = EncoderJob("embed", (2, 1), (2, 1), pack_ids([[1, 2], [3]]), params, "rev1")
    _bury(queue, "a", job=job.encode())
    (listed,) = (json.loads(line) for line in headrace("dead", "list", "--json")[1].splitlines())
    assert (listed["job"]["task"], listed["job"]["token_ids"]) == ("embed", [[1, 2], [3]])
    assert headrace("dead", "replay", "a")[0] == 0
    expected = {"pooling": "max", "dimensions": 2, "encoding_format": "float"}
    assert bodies(queue) == [{"task": "embed", "input": [[1, 2], [3]], **expected}]


def test_texts_that_were_put_together_cannot_be_sent_again_and_stay(headrace: Headrace, queue: Broker) -> None:
    job = EncoderJob("rerank", (3,), (2,), pack_ids([[1, 2, 3]]), EncoderParams(pairs=True), "rev1")
    _bury(queue, "a", job=job.encode())
    status, _, err = headrace("dead", "replay", "a")
    assert (status, "submit it anew" in err, _ids(queue)) == (1, True, ["a"])


def test_replay_sends_the_same_tokens_and_parameters_under_a_new_id(headrace: Headrace, queue: Broker) -> None:
    _bury(queue, "a", "b")
    _serve(queue, "rev1")
    status, out, err = headrace("dead", "replay", "a")
    assert (status, out) == (0, "a is sent again as a.r1\n")
    assert err == (
        "headrace: lane, reply stream, ttl and encoding of a are not known any more: a.r1 has the defaults\n"
    )
    assert bodies(queue) == [{"prompt": [1, 2, 3], **_FIELDS, "logit_bias": {"5": -1.0}}]
    assert queue.request_fields("a.r1")["state"] == "submitted"
    assert _ids(queue) == ["b"]


@pytest.mark.parametrize("request_id", ["acme:a", "acme:a/2"])
def test_replay_keeps_how_a_request_was_asked_while_that_is_known(
    headrace: Headrace, queue: Broker, request_id: str
) -> None:
    asked = {"lane": "bulk", "tenant": "acme", "enc": "json", "ttl": 4321, "reply": "me", "v": 1, "state": "done"}
    queue.client.hset(queue.keys.request(request_id), mapping=asked)
    queue.serve_tenants([RequestStream("bulk", "acme")])
    _bury(queue, request_id)
    status, _, err = headrace("dead", "replay", "--all")
    assert (status, err) == (0, "")
    ((_, entry),) = queue.client.xrange(queue.keys.prefix + "requests:bulk:acme")
    body = json.loads(entry[b"json"])
    assert (body["reply_to"], body["ttl_ms"], body["prompt"]) == ("me", 4321, [1, 2, 3])
    found = queue.request_fields(entry[b"id"].decode())
    assert {name: found[name] for name in ("lane", "tenant", "enc", "reply", "ttl")} == {
        "lane": "bulk", "tenant": "acme", "enc": "json", "reply": "me", "ttl": "4321",
    }  # fmt: skip


def test_replay_goes_on_behind_what_cannot_be_sent_again(headrace: Headrace, queue: Broker) -> None:
    _bury(queue, "a")
    _bury(queue, "b", job=b"")
    _bury(queue, "c")
    _bury(queue, "d", job=b"")
    status, out, err = headrace("dead", "replay", "--all")
    assert (status, out) == (1, "a is sent again as a.r1\nc is sent again as c.r1\n")
    told = [line for line in err.splitlines() if "stays in dead" in line]
    assert [line.split()[1] for line in told] == ["b", "d"]
    assert _ids(queue) == ["d", "b"]
    status, out, _ = headrace("dead", "replay", "--all", "--json")
    assert status == 1
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["b", "d"]
    assert all("not a job" in json.loads(line)["error"] for line in out.splitlines())


def test_replay_shortens_names_that_would_be_too_long_and_keeps_them_apart(headrace: Headrace, queue: Broker) -> None:
    names = ["x" * 126 + "yy", "x" * 126 + "yz", "x" * 126 + "y/3"]
    _bury(queue, *names)
    assert headrace("dead", "replay", "--all")[0] == 0
    entries = queue.client.xrange(queue.keys.prefix + "requests")
    ids = [fields[b"id"].decode() for _, fields in entries]
    assert len(set(ids)) == 3
    assert all(len(name) == 128 and name.startswith("x" * 100) and name.endswith(".r1") for name in ids)
    _bury(queue, ids[0])
    assert headrace("dead", "replay", "--all")[1].split()[-1] == ids[0].removesuffix("1") + "2"


def test_replay_of_one_of_several_results_sends_that_one(headrace: Headrace, queue: Broker) -> None:
    _bury(queue, "a/2")
    assert headrace("dead", "replay", "a/2")[1] == "a/2 is sent again as a.2.r1\n"
    (body,) = bodies(queue)
    assert body["seed"] == child_seed(_PARAMS.seed, 2) != _PARAMS.seed


def test_replay_of_a_replay_counts_on(headrace: Headrace, queue: Broker) -> None:
    _bury(queue, "a.r1")
    assert json.loads(headrace("dead", "replay", "--all", "--json")[1]) == {"id": "a.r1", "replayed_as": "a.r2"}


def test_replay_that_was_cut_off_before_the_entry_went_asks_once(headrace: Headrace, queue: Broker) -> None:
    _bury(queue, "a")
    assert headrace("dead", "replay", "a")[0] == 0
    _bury(queue, "a")  # as if the entry had never gone
    assert headrace("dead", "replay", "a")[0] == 0
    assert len(bodies(queue)) == 1
    assert _ids(queue) == []


@pytest.mark.parametrize(
    ("job", "message"), [(b"", "not a job of this version"), (None, "its tokens are of revision rev1")]
)
def test_what_cannot_be_sent_again_stays(headrace: Headrace, queue: Broker, job: bytes | None, message: str) -> None:
    _bury(queue, "a", job=job)
    _serve(queue, "another")
    status, _, err = headrace("dead", "replay", "a")
    assert status == 1
    assert err.startswith("headrace: a stays in dead: ")
    assert message in err
    assert (_ids(queue), bodies(queue)) == (["a"], [])


def test_drop_forgets_those_that_are_named(headrace: Headrace, queue: Broker) -> None:
    _bury(queue, "a", "b", "c")
    entry = queue.dead_requests(1)[0].id  # of c
    assert headrace("dead", "drop", "a", entry) == (0, "2 dropped\n", "")
    assert _ids(queue) == ["b"]
    assert json.loads(headrace("dead", "drop", "--all", "--json")[1]) == {"dropped": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "name the requests, or give --all"), (["a", "--all"], "name the requests"), (["x"], "not in dead: x")],
)
def test_what_is_meant_must_be_clear(headrace: Headrace, queue: Broker, arguments: Sequence[str], message: str) -> None:
    _bury(queue, "a")
    for command in ("replay", "drop"):
        status, _, err = headrace("dead", command, *arguments)
        assert status == 2
        assert message in err
    assert _ids(queue) == ["a"]
