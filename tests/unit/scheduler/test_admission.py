"""What anybody may write into a stream becomes a job, or a refusal that names the field."""

import json
from dataclasses import asdict
from typing import Any

import msgpack
import pytest

from headrace.config import Settings
from headrace.entries import Entry
from headrace.job import Job, SamplingParams
from headrace.keys import LANES, RequestStream
from headrace.moves import Admission
from headrace.testing.words import word_tokenizer
from headrace.wire import Chunk, Echo
from headrace.workers.scheduler.admission import Admitter

CONTEXT = 64
NORMAL = RequestStream("normal")
TENANT = RequestStream("normal", "t1")


@pytest.fixture(scope="module")
def admitter() -> Admitter:
    return Admitter(word_tokenizer(context_length=CONTEXT), "r1", Settings(max_body_bytes=2_000, default_max_tokens=16))


def judge(admitter: Admitter, fields: dict[bytes, bytes], stream: RequestStream = NORMAL) -> Admission:
    (admission,) = admitter.judge(stream, [Entry("17-0", fields)])
    return admission


def as_json(**fields: Any) -> dict[bytes, bytes]:
    return {b"json": json.dumps(fields).encode()}


def refusal(admission: Admission) -> dict[str, str]:
    assert admission.refusal, "it was admitted"
    found: dict[str, str] = (
        json.loads(admission.refusal) if admission.encoding == "json" else msgpack.unpackb(admission.refusal)
    )
    assert found["code"] == "invalid"
    return found


def test_a_prompt_becomes_a_job_with_every_parameter_explicit(admitter: Admitter) -> None:
    admission = judge(admitter, as_json(id="a1", prompt="one two three", temperature=0, stop="x", seed=5, max_tokens=8))
    job = Job.decode(admission.job)
    assert (admission.request_id, admission.encoding, admission.refusal) == ("a1", "json", b"")
    assert (admission.prompt_tokens, admission.cost_tokens) == (3, 11)
    assert len(job.prompt_ids) == 3
    assert (job.params.temperature, job.params.stop, job.params.seed, job.revision) == (0.0, ("x",), 5, "r1")


def test_a_request_without_an_id_is_called_after_its_entry(admitter: Admitter) -> None:
    assert judge(admitter, as_json(prompt="one")).request_id == "17-0"
    assert judge(admitter, as_json(prompt="one"), TENANT).request_id == "t1:17-0"


def test_requests_without_an_id_in_streams_whose_entries_have_one_name_are_several(admitter: Admitter) -> None:
    streams = [RequestStream(lane, tenant) for lane in LANES for tenant in ("", "t1", "t2")]
    ids = [judge(admitter, as_json(prompt="one"), stream).request_id for stream in streams]
    assert len(set(ids)) == len(streams)
    assert {"interactive-17-0", "t1:bulk-17-0"} <= set(ids)


def test_a_seed_is_drawn_where_none_is_given(admitter: Admitter) -> None:
    seeds = {Job.decode(judge(admitter, as_json(prompt="one")).job).params.seed for _ in range(4)}
    assert len(seeds) == 4


def test_output_is_bounded_by_the_default_and_by_the_context(admitter: Admitter) -> None:
    assert Job.decode(judge(admitter, as_json(prompt="one")).job).params.max_tokens == 16
    nearly_full = judge(admitter, as_json(prompt=[1] * (CONTEXT - 3)))
    assert Job.decode(nearly_full.job).params.max_tokens == 3


def test_token_ids_pass_as_they_are(admitter: Admitter) -> None:
    assert Job.decode(judge(admitter, as_json(prompt=[3, 1, 2])).job).prompt_ids == (3, 1, 2)


def test_messages_go_through_the_chat_template(admitter: Admitter) -> None:
    admission = judge(admitter, as_json(messages=[{"role": "user", "content": "one two"}]))
    assert (
        Job.decode(admission.job).prompt_ids
        == Job.decode(judge(admitter, as_json(prompt="user one two")).job).prompt_ids
    )


def test_messagepack_is_answered_in_messagepack(admitter: Admitter) -> None:
    good = judge(admitter, {b"mp": msgpack.packb({"id": "a", "prompt": "one"})})
    assert (good.encoding, good.refusal) == ("mp", b"")
    bad = judge(admitter, {b"mp": msgpack.packb({"id": "a", "prompt": "one", "temperature": -1})})
    assert (bad.encoding, bad.request_id, refusal(bad)["field"]) == ("mp", "a", "temperature")


@pytest.mark.parametrize(
    ("fields", "culprit", "words"),
    [
        ({"prompt": "one", "colour": "red"}, "colour", "unknown field"),
        ({"prompt": "one", "temperature": "hot"}, "temperature", "number"),
        ({"prompt": "one", "max_tokens": 0}, "max_tokens", "1"),
        ({"prompt": "one", "max_tokens": 64}, "max_tokens", "at most 63"),
        ({"prompt": "one", "min_tokens": 9, "max_tokens": 8}, "min_tokens", "at most max_tokens, 8"),
        ({"prompt": "one", "logit_bias": {"100": 1.0}}, "logit_bias", "under 100"),
        ({"prompt": "one", "bad_words": [[5, 100]]}, "bad_words", "under 100"),
        ({"prompt": [1, 999_999]}, "prompt", "under"),
        ({"prompt": [1] * CONTEXT}, "prompt", f"context holds {CONTEXT}"),
        ({"prompt": "one " * 70}, "prompt", "70 tokens"),
        ({"prompt": "one", "stop_token_ids": [999_999]}, "stop_token_ids", "under"),
        ({"prompt": "one", "ttl_ms": 10**11}, "ttl_ms", "at most"),
        ({"prompt": "one", "reply_to": "no spaces"}, "reply_to", "letters, digits"),
        ({"prompt": "one", "messages": [{"role": "user", "content": "x"}]}, "prompt", "exactly one"),
        ({"prompt": ""}, "prompt", "empty"),
        ({}, "prompt", "exactly one"),
        ({"prompt": "one", "v": 2}, "v", "1"),
        ({"prompt": "a\ud800b"}, "prompt", "surrogate"),
    ],
)
def test_a_refusal_names_the_field_and_the_limit(
    admitter: Admitter, fields: dict[str, Any], culprit: str, words: str
) -> None:
    admission = judge(admitter, as_json(id="a1", **fields))
    found = refusal(admission)
    assert found["field"] == culprit
    assert words in found["message"]
    assert admission.request_id == "a1", "the refusal goes to the id that the producer listens on"


def test_an_id_that_cannot_be_used_is_refused_under_the_entrys_name(admitter: Admitter) -> None:
    for bad in ("a b", "", "x" * 129, 7, "a/1", "a1\n"):
        admission = judge(admitter, as_json(id=bad, prompt="one"))
        assert (admission.request_id, refusal(admission)["field"]) == ("17-0", "id")


@pytest.mark.parametrize(
    "fields",
    [
        {b"json": b"{"},
        {b"json": b"[]"},
        {b"json": b'{"prompt": NaN}'},
        {b"json": b'{"a":1,"a":2}'},
        {b"json": b"[" * 100_000},
        {b"mp": b"\xc1"},
        {b"mp": b"\x81\x01\x02"},
        {b"json": b" " * 2_001},
    ],
)
def test_a_body_that_cannot_be_read_is_refused_as_body(admitter: Admitter, fields: dict[bytes, bytes]) -> None:
    admission = judge(admitter, fields)
    assert (admission.request_id, refusal(admission)["field"]) == ("17-0", "body")


@pytest.mark.parametrize("fields", [{b"x": b"y"}, {b"json": b"{}", b"mp": b"\x80"}, {b"json": b"{}", b"x": b"y"}])
def test_an_entry_of_another_shape_is_refused_as_entry(admitter: Admitter, fields: dict[bytes, bytes]) -> None:
    assert refusal(judge(admitter, fields))["field"] == "entry"


def test_a_line_break_behind_an_entrys_id_is_no_part_of_a_name(admitter: Admitter) -> None:
    # Previously Python's "$" let it pass, and the request was lost between moves that split names at white space.
    assert refusal(judge(admitter, {b"id": b"a1\n", **as_json(prompt="one")}))["field"] == "id"
    assert refusal(judge(admitter, {b"cancel": b"a1\n"}))["field"] == "id"


def test_a_union_is_explained_by_the_form_that_was_meant(admitter: Admitter) -> None:
    too_many = refusal(judge(admitter, as_json(prompt="one", stop=["x"] * 17)))
    assert (too_many["field"], "16" in too_many["message"]) == ("stop", True)
    nested = refusal(judge(admitter, as_json(messages=[{"role": "user", "content": 5}])))
    assert nested["message"].startswith("messages[0].content:")


def test_entry_and_body_must_name_the_same_id(admitter: Admitter) -> None:
    same = judge(admitter, {b"id": b"a1", **as_json(id="a1", prompt="one")})
    assert (same.request_id, same.refusal) == ("a1", b"")
    assert refusal(judge(admitter, {b"id": b"a1", **as_json(id="a2", prompt="one")}))["field"] == "id"


def test_a_tenant_owns_its_ids_and_reply_streams_alone(admitter: Admitter) -> None:
    assert judge(admitter, as_json(id="t1:a", prompt="one", reply_to="t1:r"), TENANT).refusal == b""
    stolen = judge(admitter, as_json(id="t2:a", prompt="one"), TENANT)
    assert (stolen.request_id, refusal(stolen)["field"]) == ("t1:17-0", "id")
    assert refusal(judge(admitter, as_json(id="t1:a", prompt="one", reply_to="t2:r"), TENANT))["field"] == "reply_to"
    assert judge(admitter, {b"cancel": b"t2:a"}, TENANT).refusal


def test_a_cancellation_names_its_request(admitter: Admitter) -> None:
    admission = judge(admitter, {b"cancel": b"a1"})
    assert (admission.cancel, admission.request_id, admission.refusal) == (True, "a1", b"")


def test_one_bad_entry_leaves_its_neighbours_alone(admitter: Admitter) -> None:
    window = [
        Entry("1-0", as_json(id="a", prompt="one")),
        Entry("2-0", {b"json": b"{"}),
        Entry("3-0", as_json(id="c", prompt="one two")),
    ]
    first, bad, last = admitter.judge(NORMAL, window)
    assert (first.refusal, last.refusal) == (b"", b"")
    assert refusal(bad)["field"] == "body"
    assert (first.prompt_tokens, last.prompt_tokens) == (1, 2)


def test_every_sampling_field_reaches_the_job(admitter: Admitter) -> None:
    asked = {
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "min_p": 0.125,
        "seed": 9,
        "stop": ["x", "y"],
        "stop_token_ids": [3, 5],
        "ignore_eos": True,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 1.0,
        "logit_bias": {"7": -1, "07": 2},
        "bad_words": [[9, 8]],
        "logprobs": 0,
    }
    expected = asked | {
        "stop": ("x", "y"),
        "stop_token_ids": (3, 5),
        "logit_bias": ((7, 2.0),),
        "bad_words": ((9, 8),),
    }
    assert asdict(Job.decode(judge(admitter, as_json(prompt="one", **asked)).job).params) == expected
    neutral = Job.decode(judge(admitter, as_json(prompt="one", seed=0)).job).params
    assert neutral == SamplingParams(16, 0, 1.0, 0, 1.0, 0.0, 0, (), (), False, 1.0, 0.0, 0.0, (), (), None)


def test_bad_words_become_the_tokens_that_spell_them(admitter: Admitter) -> None:
    first = as_json(id="a", prompt="one", bad_words=["two three", [9, 8], "x", "two three"])
    window = [
        Entry("1-0", first),
        Entry("2-0", as_json(prompt="one")),
        Entry("3-0", as_json(prompt="x", bad_words=["x"])),
    ]
    jobs = [Job.decode(admission.job) for admission in admitter.judge(NORMAL, window)]
    assert jobs[0].params.bad_words == ((4, 5), (9, 8), (6,))
    assert (jobs[1].params.bad_words, jobs[2].params.bad_words) == ((), ((6,),))


def test_an_echo_is_the_prompt_as_it_was_computed(admitter: Admitter) -> None:
    chat = judge(admitter, as_json(messages=[{"role": "user", "content": "one two"}], echo=True))
    assert Chunk.decode(chat.echo) == Chunk(0, 0, (), "", echo=Echo(Job.decode(chat.job).prompt_ids, "user one two"))
    ids = judge(admitter, {b"mp": msgpack.packb({"prompt": [3, 4], "echo": True})})
    assert Chunk.decode(ids.echo).echo == Echo((3, 4), "one two")
    assert judge(admitter, as_json(prompt="one")).echo == b""


def test_several_results_are_priced_each(admitter: Admitter) -> None:
    admission = judge(admitter, as_json(prompt="one two", max_tokens=8, n=3))
    assert (admission.num_results, admission.cost_tokens, admission.prompt_tokens) == (3, 10, 2)


def test_one_of_several_results_can_be_cancelled(admitter: Admitter) -> None:
    assert judge(admitter, {b"cancel": b"a1/12"}).request_id == "a1/12"
    for bad in (b"a1/", b"a1/x", b"a1/1234", b"a1/0/0", b"a1/0\n"):
        assert refusal(judge(admitter, {b"cancel": bad}))["field"] == "id"


def test_a_request_whose_deadline_is_over_is_not_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = word_tokenizer(context_length=CONTEXT)
    admitter, spent = Admitter(tokenizer, "r1", Settings()), []
    encode = tokenizer.encode_batch

    def counted(texts: list[str], *, add_special_tokens: bool) -> list[tuple[int, ...]]:
        spent.extend(texts)
        return encode(texts, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(tokenizer, "encode_batch", counted)
    late = Entry("1000-0", as_json(prompt="one two", deadline_ms=500, bad_words=["three"]))
    sound = Entry("1000-1", as_json(prompt="one", deadline_ms=501))
    judged = admitter.judge(NORMAL, [late, sound], now_ms=1_500)
    assert spent == ["one"]
    assert (judged[0].job, judged[0].refusal, judged[0].deadline_ms) == (b"", b"", 500)
    assert Job.decode(judged[1].job).prompt_ids
