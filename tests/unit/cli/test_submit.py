"""``headrace submit``, ``tail`` and ``cancel`` against a fleet made of the moves."""

import itertools
import json
import signal
import subprocess
import sys

import pytest
from tests.unit.cli.conftest import Headrace, bodies
from tests.unit.producer.stub_fleet import PROMPT_TEXT, StubFleet, text_of
from tests.waiting import until

from headrace.broker import Broker
from headrace.moves import CancelCall


def _start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "headrace", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )


def test_submit_prints_the_text_and_a_last_newline(headrace: Headrace, stub_fleet: StubFleet) -> None:
    assert headrace("submit", "hello", "--seed", "5", "--max-tokens", "9") == (0, text_of(5, 9) + "\n", "")


def test_json_is_a_chunk_a_line(headrace: Headrace, stub_fleet: StubFleet) -> None:
    status, out, _ = headrace("submit", "hello", "--seed", "5", "--max-tokens", "5", "--json")
    chunks = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert "".join(chunk["text"] for chunk in chunks) == text_of(5, 5)
    assert chunks[-1]["done"]["usage"]["completion_tokens"] == 5


def test_json_carries_logprobs_and_the_index_of_each_result(headrace: Headrace, stub_fleet: StubFleet) -> None:
    out = headrace("submit", "hello", "--id", "a1", "--seed", "5", "--max-tokens", "4", "--field", "n=2", "--json")[1]
    chunks = [json.loads(line) for line in out.splitlines()]
    assert [token["logprob"] for chunk in chunks if chunk.get("index") == 1 for token in chunk["logprobs"]] == [
        0.0, -0.125, -0.25, -0.375,
    ]  # fmt: skip
    assert "index" not in chunks[-1]
    alone = [json.loads(line) for line in headrace("tail", "a1/1", "--json")[1].splitlines()]
    assert "".join(chunk["text"] for chunk in alone) == text_of(6, 4)
    assert all(chunk["logprobs"] for chunk in alone)


def test_several_results_are_printed_each_when_it_has_ended(headrace: Headrace, stub_fleet: StubFleet) -> None:
    out = headrace("submit", "hello", "--seed", "5", "--max-tokens", "4", "--field", "n=2", "--field", "echo=true")[1]
    assert sorted(out.splitlines()) == [f"[{i}] {PROMPT_TEXT}{text_of(5 + i, 4)}" for i in range(2)]


def test_an_echo_is_printed_before_the_text(headrace: Headrace, stub_fleet: StubFleet) -> None:
    out = headrace("submit", "hello", "--seed", "5", "--max-tokens", "4", "--field", "echo=true")[1]
    assert out == PROMPT_TEXT + text_of(5, 4) + "\n"


def test_stats_go_to_stderr(headrace: Headrace, stub_fleet: StubFleet) -> None:
    _, out, err = headrace("submit", "hello", "--seed", "5", "--max-tokens", "6", "--stats")
    assert out == text_of(5, 6) + "\n"
    assert err.startswith("first token after ")
    assert "tokens/s (6 tokens)" in err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_id_that_is_known_is_said_to_be(headrace: Headrace, stub_fleet: StubFleet, options: list[str]) -> None:
    first = headrace("submit", "hello", "--id", "a1", "--seed", "5", "--max-tokens", "4", *options)
    assert first[2] == ""
    second = headrace("submit", "another", "--id", "a1", "--seed", "6", "--max-tokens", "4", *options)
    assert second[:2] == first[:2]
    assert second[2] == "headrace: a1 is known already: this is its result, not a new one\n"
    assert headrace("submit", "another", "--id", "a1", "--no-wait") == (
        0,
        "a1\n",
        "headrace: a1 is known already: nothing new was submitted\n",
    )


def test_no_wait_prints_the_id_and_leaves(headrace: Headrace, queue: Broker) -> None:
    assert headrace("submit", "hello", "--id", "a1", "--no-wait", "--lane", "bulk")[:2] == (0, "a1\n")
    assert queue.request_fields("a1")["lane"] == "bulk"


def test_every_option_is_a_field_of_the_request(headrace: Headrace, queue: Broker) -> None:
    options = ["--max-tokens", "9", "--min-tokens", "2", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "40",
               "--min-p", "0.1", "--seed", "7", "--stop", "x", "--stop", "y", "--stop-token-id", "2", "--ignore-eos",
               "--deadline-ms", "9000", "--ttl-ms", "8000", "--reply-to", "me", "--field", "echo=false"]  # fmt: skip
    assert headrace("submit", "hello", "--no-wait", *options)[0] == 0
    assert bodies(queue) == [
        {"prompt": "hello", "max_tokens": 9, "min_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 40,
         "min_p": 0.1, "seed": 7, "stop": ["x", "y"], "stop_token_ids": [2], "ignore_eos": True, "deadline_ms": 9000,
         "ttl_ms": 8000, "reply_to": "me", "echo": False}
    ]  # fmt: skip


def test_chat_asks_in_messages(headrace: Headrace, queue: Broker) -> None:
    assert headrace("submit", "hello", "--chat", "--system", "Be brief.", "--seed", "1", "--no-wait")[0] == 0
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert bodies(queue) == [{"messages": turns, "seed": 1}]


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_a_prompt_comes_from_stdin_where_there_is_none(headrace: Headrace, queue: Broker, arguments: list[str]) -> None:
    assert headrace("submit", "--seed", "1", "--no-wait", *arguments, stdin="one\ntwo")[0] == 0
    assert bodies(queue) == [{"prompt": "one\ntwo", "seed": 1}]


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", [1, 2, 3]), ("prompt", "hello"), ("messages", [{"role": "user", "content": "hello"}])],
)
def test_what_is_asked_can_be_given_as_a_field(headrace: Headrace, queue: Broker, field: str, value: object) -> None:
    assert headrace("submit", "--field", f"{field}={json.dumps(value)}", "--seed", "1", "--no-wait")[0] == 0
    assert bodies(queue) == [{field: value, "seed": 1}]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["x", "--lane", "fast"], 2, "--lane 'fast': must be interactive, normal or bulk"),
        (["x", "--temperature", "-1"], 1, "temperature"),
        (["x", "--field", "temprature=1"], 2, "temprature: unknown field; did you mean temperature?"),
        (["x", "--field", "request_id=a1"], 2, "--field request_id: no field of a request; give it as --id"),
        (["x", "--field", "id=a1"], 2, "give it as --id"),
        (["x", "--field", "lane=bulk"], 2, "give it as --lane"),
        (["x", "--field", "tenant=acme"], 2, "give it as --tenant"),
        (["x", "--field", "timeout_s=1"], 2, "give it as --timeout-s"),
        (["x", "--field", "via=xadd"], 2, "via: unknown field"),
        (["x", "--field", "encoding=json"], 2, "encoding: unknown field"),
        (["x", "--field", "durability=fsync"], 2, "durability: unknown field"),
        (["x", "--field", "self=1"], 2, "self: unknown field"),
        (["x", "--field", "prompt=[1,2]"], 2, "prompt: given twice"),
        (["x", "--field", 'prompt="y"'], 2, "prompt: given twice"),
        (["x", "--field", 'messages=[{"role":"user","content":"y"}]'], 2, "messages: given twice"),
        (["--chat", "--field", "prompt=[1,2]"], 2, "--field prompt: --chat makes messages"),
        (["x", "--stop", "y", "--field", 'stop="z"'], 2, "stop: given twice"),
        (["x", "--field", "n=1", "--field", "n=2"], 2, "n: given twice"),
        (["x", "--timeout-s", "-1"], 2, "--timeout-s -1.0: must be at least 0"),
        (["x", "--timeout-s", "nan"], 2, "--timeout-s nan: must be at least 0"),
        ([""], 2, "give a prompt"),
        ([], 2, "give a prompt: stdin is empty"),
        (["-"], 2, "give a prompt: stdin is empty"),
        (["x", "--field", "n=129"], 1, "n: Input should be less than or equal to 128"),
        (["x", "--field", "seed"], 2, "must be NAME=VALUE"),
        (["x", "--seed", "1", "--field", "seed=2"], 2, "seed: given twice"),
        (["x", "--system", "y"], 2, "--system goes with --chat"),
        (["too long", "--max-tokens", "3"], 1, "prompt: has 9 tokens, at most 8 are allowed"),
    ],
)
def test_what_is_wrong_is_named(
    headrace: Headrace, stub_fleet: StubFleet, arguments: list[str], status: int, message: str
) -> None:
    found, out, err = headrace("submit", *arguments)
    assert (found, out.strip()) == (status, "")
    assert err.startswith("headrace: ")
    assert message in err


def test_ctrl_c_in_submit_cancels_the_request(queue: Broker) -> None:
    with StubFleet(queue, until_token=4):
        process = _start("submit", "hello", "--id", "a1", "--max-tokens", "50")
        until(lambda: queue.request_fields("a1").get("at", "").endswith(":4"))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "headrace: a1 is cancelled\n"
    assert queue.request_fields("a1")["reason"] == "cancelled"


def test_ctrl_c_in_tail_leaves_the_request_alone(headrace: Headrace, queue: Broker) -> None:
    with StubFleet(queue, until_token=4) as fleet:
        headrace("submit", "hello", "--id", "a1", "--seed", "5", "--max-tokens", "8", "--no-wait")
        process = _start("tail", "a1")
        assert process.stdout is not None
        first = process.stdout.read(len(text_of(5, 4)))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, first, err) == (130, text_of(5, 4), "")
        fleet.until_token = 1 << 30
        assert headrace("tail", "a1") == (0, text_of(5, 8) + "\n", "")


def test_a_reader_that_goes_away_cancels_the_request_without_a_word(queue: Broker) -> None:
    with StubFleet(queue, until_token=4) as fleet:
        process = _start("submit", "hello", "--id", "a1", "--max-tokens", "5000")
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        fleet.until_token = 1 << 30
        assert process.wait(60) != 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stderr.close()
    assert queue.request_fields("a1")["reason"] == "cancelled"


def test_tail_goes_on_behind_the_tokens_that_are_held(headrace: Headrace, stub_fleet: StubFleet) -> None:
    headrace("submit", "hello", "--id", "a1", "--seed", "5", "--max-tokens", "8")
    assert headrace("tail", "a1", "--after", "4") == (0, text_of(5, 8).removeprefix(text_of(5, 4)) + "\n", "")
    chunks = [json.loads(line) for line in headrace("tail", "a1", "--after", "6", "--json")[1].splitlines()]
    assert [chunk["i"] for chunk in chunks] == [6]


def test_tail_behind_the_end_says_how_long_the_result_is(headrace: Headrace, stub_fleet: StubFleet) -> None:
    headrace("submit", "hello", "--id", "a1", "--max-tokens", "8")
    status, out, err = headrace("tail", "a1", "--after", "99")
    assert (status, out) == (1, "")
    assert err == "headrace: the result has only 8 tokens, and 99 are said to be held\n"


def test_tail_of_an_unknown_request_says_so(headrace: Headrace, queue: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cli.tail.ATTACH_WAIT_S", 0.1)
    status, _, err = headrace("tail", "nobody")
    assert status == 1
    assert err.startswith("headrace: nobody is unknown")


def test_a_result_that_takes_too_long_is_one_line(headrace: Headrace, queue: Broker) -> None:
    status, _, err = headrace("submit", "hello", "--id", "a1", "--timeout-s", "0.2")
    assert status == 1
    assert err == "headrace: no end of a1 within 0.2 s\n"


def test_cancel_says_what_became_of_each(headrace: Headrace, queue: Broker) -> None:
    headrace("submit", "hello", "--id", "waiting", "--no-wait")
    headrace("submit", "hello", "--id", "over", "--no-wait")
    queue.run(CancelCall("over", queue.settings))
    status, out, _ = headrace("cancel", "waiting", "over", "unheard")
    assert status == 0
    assert out.splitlines() == [
        "waiting: cancelled, was submitted",
        "over: had ended already",
        "unheard: not known here; it is cancelled if it still comes",
    ]
    assert queue.request_fields("waiting")["reason"] == "cancelled"


def test_an_id_that_cannot_be_one_is_refused(headrace: Headrace, queue: Broker) -> None:
    for command, name in itertools.product(("cancel", "tail"), ("a b", "a\n", "")):
        status, _, err = headrace(command, name)
        assert status == 2
        assert "cannot be a request's id" in err
