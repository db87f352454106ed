"""A fleet that serves all-MiniLM-L6-v2: vectors as the model computes them, whatever is killed meanwhile."""

import asyncio
import json
import os
import re
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.fleet.conftest import fleet_settings
from tests.waiting import until

from headrace.encoder_result import Embeddings, read_answer
from headrace.errors import FailedError, InvalidRequestError
from headrace.kernels.encoder_reference import EncoderReference
from headrace.producer import AsyncClient, Client
from headrace.stock import take_stock
from headrace.testing.arrival_trial import ArrivalTrial, Prompts
from headrace.testing.fleet import Fleet
from headrace.testing.queue_simulation import poisson_arrivals
from headrace.testing.servers import Server
from headrace.workers.encoder.items import Embedding, EncoderItem
from headrace.workers.encoder.loading import load_encoder
from headrace.workers.encoder.runner import EncoderRunner
from headrace.workers.model_store.store import ModelFolder, default_cache_dir, pull
from headrace.workers.text.encoder_tokenizer import EncoderTokenizer

MODEL = "all-minilm-l6-v2"
#: Packed batches round differently, by their sizes.
TOLERANCE = 1e-5
TEXTS = [f"{number} boats, {'and a very long story of ' * (number % 7)} the sea" for number in range(200)]

Floats = np.ndarray[tuple[int, int], np.dtype[np.float32]]


@pytest.fixture(scope="module")
def minilm() -> ModelFolder:
    return pull(MODEL, default_cache_dir(), Console(stderr=True))


@pytest.fixture(scope="module")
def fleet(minilm: ModelFolder) -> Iterator[Fleet]:
    with Server("valkey") as server:
        settings = fleet_settings(server.url, model=MODEL, num_threads=1, cache_entries=100)
        with Fleet(settings) as fleet:
            yield fleet


@pytest.fixture(scope="module")
def expected(minilm: ModelFolder) -> Callable[[list[str]], Floats]:
    """The model's own vectors, a text at a time."""
    torch.set_num_threads(1)
    tokenizer = EncoderTokenizer.from_folder(minilm.path)
    runner = EncoderRunner(load_encoder(minilm.path, EncoderReference(), torch.float32))

    known: dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]] = {}

    def compute(texts: list[str]) -> Floats:
        for text in texts:
            if text not in known:
                (tokens,) = tokenizer.encode_batch([text])
                (result,) = runner.run([EncoderItem("embed", tuple(tokens.ids))])
                assert isinstance(result, Embedding)
                known[text] = result.vector.numpy()
        return np.stack([known[text] for text in texts])

    return compute


def assert_near(found: Embeddings, wanted: Floats) -> None:
    assert np.abs(found.numpy() - wanted).max() < TOLERANCE


def test_many_texts_come_back_as_the_model_alone_computes_them(
    fleet: Fleet, expected: Callable[[list[str]], Floats]
) -> None:
    with Client(fleet.settings, timeout_s=60) as client:
        found = client.embed(TEXTS[:100], texts_per_request=7)
        assert_near(found, expected(TEXTS[:100]))
        ranking = client.rerank("How far is the harbour?", ["Two miles to the port.", "A loaf of bread.", "Red."])
        assert ranking.documents[0].index == 0
        with pytest.raises(InvalidRequestError, match="cannot classify; it can embed, rerank"):
            client.classify("x")
        with pytest.raises(InvalidRequestError, match="is an encoder"):
            client.submit("Once upon a time").result()


def test_the_readmes_program_runs_as_it_stands_there(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (program,) = (block for block in blocks if "client.embed(" in block)
    assert program.count("redis://127.0.0.1:6381/0") == 1
    exec(program.replace("redis://127.0.0.1:6381/0", fleet.settings.redis_url), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.count("array(") == 2
    assert second.startswith("0 0.")


def test_a_plain_xadd_of_json_is_answered_with_a_list(fleet: Fleet, expected: Callable[[list[str]], Floats]) -> None:
    client = fleet.broker.client
    body = {"id": "plain", "task": "embed", "input": "The sea is calm."}
    client.xadd(f"hr:{{{MODEL}}}:requests", {"json": json.dumps(body)})
    ((_, entries),) = client.xread({f"hr:{{{MODEL}}}:out:plain": "0"}, block=20_000)
    ((entry, fields),) = entries
    done = json.loads(fields[b"json"])["done"]
    assert (entry, done["reason"], done["usage"]["prompt_tokens"]) == (b"0-2", "stop", 7)
    found = read_answer(done["result"])
    assert isinstance(found, Embeddings)
    assert_near(found, expected(["The sea is calm."]))


@pytest.mark.parametrize("part", ["engine", "courier", "worker", "scheduler"])
def test_whatever_is_killed_every_text_is_answered_once_and_rightly(
    fleet: Fleet, expected: Callable[[list[str]], Floats], part: str
) -> None:
    fleet.wait_ready()
    answers: list[Embeddings] = []
    broker = fleet.broker

    def ask() -> None:
        with Client(fleet.settings, timeout_s=120) as client:
            answers.append(client.embed(TEXTS, texts_per_request=5, request_id=f"of-{part}", cache=False))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: broker.load()["running"] > 0)
    pid = fleet.pids("courier")[0] if part == "worker" else 0
    # A worker that is killed as a whole takes both of its processes with it.
    os.kill(_parent(pid), signal.SIGKILL) if part == "worker" else fleet.kill_part(part)  # type: ignore[arg-type]
    asking.join(120)
    assert len(answers) == 1, fleet.log[-2_000:]
    assert_near(answers[0], expected(TEXTS))
    for number in range(40):
        chunks = broker.chunks_after(f"of-{part}.{number}", 0, 0)
        assert [chunk.done.reason for chunk in chunks if chunk.done] == ["stop"]
        assert len(chunks) == 1
    assert take_stock(broker).is_sound


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("PPid"))


def test_a_request_that_its_engines_die_of_is_given_up_and_no_other(fleet: Fleet) -> None:
    fleet.wait_ready()
    broker = fleet.broker
    long = ["word " * 29] * 1_000
    with Client(fleet.settings, timeout_s=60) as client:
        # Long enough to be under way whenever an engine dies.
        deadly = client.submit(task="embed", input=long, request_id="deadly", cache=False)
        for attempt in range(1, 4):
            until(lambda attempt=attempt: broker.request_fields("deadly")["attempts"] == str(attempt))  # type: ignore[misc]
            fleet.wait_ready()
            fleet.kill_part("engine")
            fleet.wait_ready()
        with pytest.raises(FailedError) as caught:
            deadly.result()
        assert caught.value.code == "poison"
        assert client.embed("The sea.").vector
    assert [entry.fields[b"id"] for entry in broker.dead_requests(5)] == [b"deadly"]


def test_a_cancelled_request_stops_being_computed(fleet: Fleet) -> None:
    fleet.wait_ready()
    broker = fleet.broker
    with Client(fleet.settings, timeout_s=60) as client:
        handle = client.submit(task="embed", input=["word " * 29] * 1_000, cache=False)
        until(lambda: broker.request_fields(handle.id).get("state") == "running")
        assert handle.cancel() == "running"
        assert isinstance(client.embed("The sea is calm.", cache=False).vector, array)
        assert broker.load()["running"] == 0


def test_every_arrival_at_an_encoder_has_a_latency_from_the_moment_it_was_due(fleet: Fleet) -> None:
    async def trial() -> list[float]:
        async with AsyncClient(fleet.settings) as client:
            arrivals = poisson_arrivals(20, 40.0, 2, 60, seed=1)
            return await ArrivalTrial(client, arrivals, Prompts(30_000, seed=1), 60_000, embeds=True).run()

    begin_s = time.monotonic()
    taken = asyncio.run(trial())
    assert len(taken) == 20
    assert all(0 < latency_ms < (time.monotonic() - begin_s) * 1000 for latency_ms in taken)
