"""Requests to an encoder become jobs with all texts tokenised, or refusals that name the text and the limit."""

import json
from typing import Any

import msgpack
import pytest

from headrace.config import Settings
from headrace.encoder_job import EncoderJob, EncoderParams
from headrace.entries import Entry
from headrace.keys import RequestStream
from headrace.moves import Admission
from headrace.testing.words import encoder_tokenizer, word_tokenizer
from headrace.workers.scheduler.admission import Admitter
from headrace.workers.scheduler.encoder_admission import EncoderAdmitter

NORMAL = RequestStream("normal")
SETTINGS = Settings(queue="words", max_request_texts=5, max_request_tokens=24, max_body_bytes=2_000)
#: Ids of the words, and of the tokens around a text.
ONE, TWO, X, CLS, SEP, MASK = 4, 5, 7, 1, 2, 3


def admitter(**given: Any) -> EncoderAdmitter:
    return EncoderAdmitter(encoder_tokenizer(8, **given), "r1", SETTINGS)


def judge(to: EncoderAdmitter | Admitter, **fields: Any) -> Admission:
    (admission,) = to.judge(NORMAL, [Entry("17-0", {b"json": json.dumps(fields).encode()})])
    return admission


def job_of(admission: Admission) -> EncoderJob:
    assert not admission.refusal, admission.refusal
    return EncoderJob.decode(admission.job)


def ids_of(admission: Admission) -> list[list[int]]:
    return [list(text) for text in job_of(admission).texts()]


def refusal(admission: Admission) -> tuple[str, str]:
    assert admission.refusal, "it was admitted"
    found = json.loads(admission.refusal)
    return found["field"], found["message"]


def test_one_text_or_many_become_token_ids_in_their_order() -> None:
    one = judge(admitter(), id="a", task="embed", input="one two")
    assert ids_of(one) == [[CLS, ONE, TWO, SEP]]
    assert (one.request_id, one.cost_tokens, one.prompt_tokens, one.num_results) == ("a", 4, 4, 1)
    many = judge(admitter(), task="embed", input=["one", "x one two", "two"])
    assert ids_of(many) == [[CLS, ONE, SEP], [CLS, X, ONE, TWO, SEP], [CLS, TWO, SEP]]
    assert (many.cost_tokens, job_of(many).revision) == (11, "r1")


def test_token_ids_pass_as_they_are() -> None:
    assert ids_of(judge(admitter(), task="embed", input=[7, 8])) == [[7, 8]]
    assert ids_of(judge(admitter(), task="embed", input=[[7, 8], [9]])) == [[7, 8], [9]]


def test_every_option_reaches_the_job() -> None:
    asked = {"pooling": "max", "normalize": False, "dimensions": 2, "encoding_format": "float"}
    assert job_of(judge(admitter(), task="embed", input="x", **asked)).params == EncoderParams(
        "max", False, 2, floats=True
    )
    assert job_of(judge(admitter(), task="embed", input="x", encoding_format="base64")).params.floats is False
    assert job_of(judge(admitter(), task="embed", input="x")).params == EncoderParams()
    assert job_of(judge(admitter(labels=("a", "b")), task="classify", input="x", top_k=1)).params.top == 1
    assert job_of(judge(admitter(), task="fill", input="[MASK]")).params.top == 5


def test_a_model_with_one_label_reads_query_and_document_together() -> None:
    fields = {"task": "rerank", "query": "one", "documents": ["x", "two two"], "top_n": 1}
    pairs = judge(admitter(labels=("relevant",)), **fields)
    assert ids_of(pairs) == [[CLS, ONE, SEP, X, SEP], [CLS, ONE, SEP, TWO, TWO, SEP]]
    assert (job_of(pairs).firsts, job_of(pairs).params) == ((3, 3), EncoderParams(top=1, pairs=True))
    apart = judge(admitter(), **fields)
    assert ids_of(apart) == [[CLS, ONE, SEP], [CLS, X, SEP], [CLS, TWO, TWO, SEP]]
    assert (job_of(apart).firsts, job_of(apart).params.pairs) == ((3, 3, 4), False)


def test_pairs_to_classify_are_read_together() -> None:
    to = admitter(labels=("a", "b"))
    assert ids_of(judge(to, task="classify", input=["one"], text_pair=["x"])) == [[CLS, ONE, SEP, X, SEP]]
    assert job_of(judge(to, task="classify", input="one", text_pair="x")).firsts == (3,)


def test_what_is_too_long_is_cut_only_where_that_is_asked_for() -> None:
    texts = ["one", "x " * 20, "two"]
    field, message = refusal(judge(admitter(), task="embed", input=texts))
    assert (field, message.startswith("input[1]: 22 tokens, the model takes 8")) == ("input", True)
    assert "truncate" in message
    cut = ids_of(judge(admitter(), task="embed", input=texts, truncate=True))
    assert cut == [[CLS, ONE, SEP], [CLS, *[X] * 6, SEP], [CLS, TWO, SEP]]
    assert ids_of(judge(admitter(), task="embed", input=[*range(7, 16)], truncate=True)) == [
        [7, 8, 9, 10, 11, 12, 13, 15]
    ]
    pair = judge(admitter(labels=("r",)), task="rerank", query="one", documents=["x " * 9], truncate=True)
    assert ids_of(pair) == [[CLS, ONE, SEP, X, X, X, X, SEP]]


@pytest.mark.parametrize(
    ("fields", "culprit", "words"),
    [
        ({"task": "embed", "input": ["one"] * 6}, "input", "6 texts, a request takes 5"),
        ({"task": "embed", "input": ["one " * 6] * 4}, "input", "32 tokens in all, a request takes 24"),
        ({"task": "rerank", "query": "x", "documents": ["one"] * 5}, "documents", "6 texts, a request takes 5"),
        ({"task": "rerank", "query": "x " * 9, "documents": ["one"]}, "query", "11 tokens, the model takes 8"),
        ({"task": "rerank", "query": "x", "documents": ["one", "x " * 9]}, "documents", "documents[1]: 11 tokens"),
        ({"task": "embed", "input": [1, 100]}, "input", "under 100"),
        ({"task": "embed", "input": "x", "dimensions": 9}, "dimensions", "at most 6"),
        ({"task": "fill", "input": ["[MASK]", "one"]}, "input", "input[1]: no [MASK] to be filled"),
        ({"task": "fill", "input": "x x x x x x x [MASK]", "truncate": True}, "input", "once it is cut"),
        ({"task": "embed", "input": "x", "ttl_ms": 10**11}, "ttl_ms", "at most"),
        ({"task": "embed", "input": ["one", ""]}, "input", "input[1]"),
        ({"task": "embed", "prompt": "x"}, "input", "required"),
        ({"task": "summon", "input": "x"}, "task", "embed, classify, rerank, fill"),
    ],
)
def test_a_refusal_names_the_text_and_the_limit(fields: dict[str, Any], culprit: str, words: str) -> None:
    found = judge(admitter(width=6), id="a1", **fields)
    field, message = refusal(found)
    assert (field, found.request_id) == (culprit, "a1")
    assert words in message


def test_text_is_refused_by_an_encoder_and_the_reverse_with_what_to_do() -> None:
    field, message = refusal(judge(admitter(tasks=("embed", "rerank")), prompt="one", max_tokens=4))
    assert field == "task"
    assert "queue words is an encoder" in message
    assert "(embed, rerank)" in message
    assert "a model that writes" in message
    field, message = refusal(judge(Admitter(word_tokenizer(64), "r1", SETTINGS), task="embed", input="one"))
    assert field == "task"
    assert "queue words writes text and cannot embed: ask the queue of an encoder" in message


def test_a_task_that_the_model_has_no_head_for_is_refused_with_those_it_has() -> None:
    field, message = refusal(judge(admitter(tasks=("embed", "rerank")), task="fill", input="[MASK]"))
    assert (field, "cannot fill; it can embed, rerank" in message) == ("task", True)
    field, message = refusal(judge(admitter(labels=("a", "b")), task="rerank", query="x", documents=["x"]))
    assert (field, "2 labels" in message) == ("task", True)


def test_one_bad_request_leaves_its_neighbours_alone() -> None:
    bodies: list[dict[str, Any]] = [
        {"input": "one"},
        {"input": ["x " * 9]},
        {"input": ["two", "x"]},
        {"input": "x " * 9, "truncate": True},
    ]
    window = [
        Entry(f"{i}-0", {b"mp": msgpack.packb({"task": "embed", **body})}) for i, body in enumerate(bodies, start=1)
    ]
    found = admitter().judge(NORMAL, window)
    assert [bool(admission.refusal) for admission in found] == [False, True, False, False]
    assert [admission.cost_tokens for admission in found] == [3, 0, 6, 8]


def test_a_window_is_tokenised_in_one_call_and_late_requests_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, calls = encoder_tokenizer(8), []
    encode = tokenizer.encode_batch

    def counted(texts: list[Any], *, truncate: bool = False) -> list[Any]:
        calls.append(list(texts))
        return encode(texts, truncate=truncate)

    monkeypatch.setattr(tokenizer, "encode_batch", counted)
    window = [
        Entry("1000-0", {b"json": b'{"task":"embed","input":["one","two"]}'}),
        Entry("1000-1", {b"json": b'{"task":"embed","input":"x","deadline_ms":500}'}),
        Entry("1000-2", {b"json": b'{"task":"rerank","query":"x","documents":["one"]}'}),
    ]
    found = EncoderAdmitter(tokenizer, "r1", SETTINGS).judge(NORMAL, window, now_ms=1_500)
    assert calls == [["one", "two", "x", "one"], []]
    assert [bool(admission.job) for admission in found] == [True, False, True]
    assert found[1].deadline_ms == 500


def test_equal_requests_have_one_cache_key_and_others_none_in_common() -> None:
    to = EncoderAdmitter(encoder_tokenizer(8), "r1", SETTINGS.model_copy(update={"cache_entries": 5}))

    def key(**fields: Any) -> str:
        return judge(to, **{"task": "embed", "input": "one", **fields}).cache_key

    assert key() == key(id="b", deadline_ms=10**12, ttl_ms=5, reply_to="r", pooling=None) == key(input=[CLS, ONE, SEP])
    others = [
        key(pooling="max"),
        key(input="two"),
        key(normalize=True),
        key(dimensions=2),
        key(encoding_format="float"),
    ]
    assert len({key(), *others}) == 6
    assert key(cache=False) == ""
    (as_mp,) = to.judge(NORMAL, [Entry("1-0", {b"mp": msgpack.packb({"task": "embed", "input": "one"})})])
    assert as_mp.cache_key not in ("", key()), "an answer is kept as it is published"
    assert job_of(as_mp).cache_key == as_mp.cache_key
    other = EncoderAdmitter(encoder_tokenizer(8), "r2", SETTINGS.model_copy(update={"cache_entries": 5}))
    assert judge(other, task="embed", input="one").cache_key != key()
    assert judge(admitter(), task="embed", input="one").cache_key == ""


def test_only_texts_that_come_out_alike_have_a_cache_key() -> None:
    to = Admitter(word_tokenizer(64), "r1", SETTINGS.model_copy(update={"cache_entries": 5}))

    def key(**fields: Any) -> str:
        return judge(to, **{"prompt": "one", "max_tokens": 4, **fields}).cache_key

    assert key() == key(temperature=0.5) == ""
    assert key(temperature=0) == key(temperature=0, seed=3, top_k=2) != ""
    assert key(seed=3) == key(seed=3) != key(seed=4)
    assert key(seed=3) not in ("", key(temperature=0))
    assert key(temperature=0, cache=False) == key(temperature=0, n=2) == ""
    assert key(temperature=0, echo=True) == key(temperature=0), "an echo heads the answer and is no part of it"
