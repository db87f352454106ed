"""The programs in examples/ as a reader of them runs them, each on a server and against a fleet made of the moves."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import fast_settings
from tests.redis.encoder_fleet import EncoderFleet
from tests.unit.producer.stub_fleet import StubFleet, text_of, token
from tests.waiting import until

from headrace.broker import Broker
from headrace.testing.servers import Server, free_port
from headrace.wire import Chunk

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PYTHON = {way: [sys.executable, str(EXAMPLES / "python" / f"{way}.py")] for way in ("stream", "subscribe")}
LANGUAGES = pytest.mark.parametrize("language", ["python", "node"])
WAYS = pytest.mark.parametrize("way", ["stream", "subscribe"])
NUM_TOKENS = 32


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/node with its dependency: a missing node or npm fails a test, as a missing server does."""
    folder = tmp_path_factory.mktemp("examples") / "node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def command(request: pytest.FixtureRequest, language: str, way: str) -> list[str]:
    if language == "python":
        return PYTHON[way]
    return ["node", str(request.getfixturevalue("node_folder") / f"{way}.mjs")]


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """On a port, as the examples' URLs have one."""
    with Server("redis", port=free_port()) as server:
        yield server


@pytest.fixture
def fleet(own_server: Server) -> Iterator[StubFleet]:
    with own_server.client() as client:
        client.flushall()
    broker = Broker.connect(fast_settings(redis_url=own_server.url))
    with StubFleet(broker) as fleet:
        yield fleet
    broker.close()


def start(command: list[str], fleet: StubFleet, prompt: str) -> subprocess.Popen[str]:
    settings = fleet.broker.settings
    environ = os.environ | {"REDIS_URL": settings.redis_url, "QUEUE": settings.queue_name}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, prompt], env=environ, text=True, **pipes)


@LANGUAGES
@WAYS
def test_it_prints_the_whole_answer(command: list[str], fleet: StubFleet) -> None:
    process = start(command, fleet, "hello")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, text_of(0, NUM_TOKENS) + "\n"), err
    assert err.startswith("length")


@LANGUAGES
@WAYS
def test_it_says_why_a_request_was_refused(command: list[str], fleet: StubFleet) -> None:
    process = start(command, fleet, "too long")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.strip()) == (1, "")
    assert "prompt: has 9 tokens, at most 8 are allowed" in err


@LANGUAGES
@pytest.mark.parametrize("way", ["subscribe"])
def test_what_a_broken_subscription_missed_is_read_from_the_stream(command: list[str], fleet: StubFleet) -> None:
    fleet.until_token = 8
    process = start(command, fleet, "hello")
    assert process.stdout is not None
    heard = process.stdout.read(len(text_of(0, 8)))
    client = fleet.broker.client
    assert client.client_kill_filter(_type="pubsub") == 1
    fleet.until_token = NUM_TOKENS
    out, err = process.communicate(timeout=60)
    assert (process.returncode, heard + out) == (0, text_of(0, NUM_TOKENS) + "\n"), err


@LANGUAGES
@pytest.mark.parametrize("way", ["subscribe"])
def test_a_chunk_behind_a_gap_waits_for_what_is_missing(command: list[str], fleet: StubFleet) -> None:
    fleet.until_token = 8
    process = start(command, fleet, "hello")
    assert process.stdout is not None
    heard = process.stdout.read(len(text_of(0, 8)))
    (channel,) = fleet.broker.client.pubsub_channels()
    before, after = text_of(0, 16), text_of(0, 18)
    early = Chunk(16, len(before), (token(0, 16), token(0, 17)), after[len(before) :])
    fleet.broker.client.publish(channel, early.encode("json"))
    fleet.until_token = NUM_TOKENS
    out, err = process.communicate(timeout=60)
    assert (process.returncode, heard + out) == (0, text_of(0, NUM_TOKENS) + "\n"), err


@LANGUAGES
@pytest.mark.parametrize("way", ["subscribe"])
def test_it_subscribes_before_it_asks(command: list[str], fleet: StubFleet) -> None:
    fleet.until_token = 0
    process = start(command, fleet, "hello")
    client, keys = fleet.broker.client, fleet.broker.keys
    until(lambda: client.keys(keys.request("*")))
    request_id = client.keys(keys.request("*"))[0].decode().removeprefix(keys.request(""))
    assert client.pubsub_channels() == [keys.out(request_id).encode()]
    fleet.until_token = NUM_TOKENS
    assert process.communicate(timeout=60)[0] == text_of(0, NUM_TOKENS) + "\n"


def test_texts_are_compared_by_what_an_encoder_answers(own_server: Server) -> None:
    with own_server.client() as client:
        client.flushall()
    settings = fast_settings(redis_url=own_server.url)
    environ = os.environ | {"REDIS_URL": settings.redis_url, "QUEUE": settings.queue_name}
    command = [sys.executable, str(EXAMPLES / "python" / "embed.py")]
    with EncoderFleet(settings):
        found = subprocess.run([*command, "one", "x", "x x"], env=environ, capture_output=True, text=True, timeout=60)
        assert [line.split("  ") for line in found.stdout.splitlines()] == [["84.000", "x"], ["136.000", "x x"]]
        refused = subprocess.run([*command, "one", "x " * 40], env=environ, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, "input[1]: 42 tokens, the model takes 32" in refused.stderr) == (1, True)
