"""An encoder's worker on the GPU, through Redis: the CPU's vectors, before and after its engine has died."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from tests.fleet.conftest import fleet_settings
from tests.model.tiny_encoders import VOCAB, make_encoder

from headrace.kernels.encoder_reference import EncoderReference
from headrace.producer.client import Client
from headrace.testing.fleet import Fleet
from headrace.testing.servers import Server
from headrace.workers.encoder.items import Embedding, EncoderItem
from headrace.workers.encoder.loading import load_encoder
from headrace.workers.encoder.runner import EncoderRunner

DEVICE = "cuda"
#: Token ids, each its own word.
ROWS = [tuple(6 + (7 * row + index) % (VOCAB - 6) for index in range(1 + 11 * row % 90)) for row in range(60)]


def words(row: tuple[int, ...]) -> str:
    return " ".join(f"w{token}" for token in row)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_encoder("bert", folder=tmp_path, hidden_size=128, num_attention_heads=2)
    model = {"type": "WordLevel", "vocab": {f"w{token}": token for token in range(VOCAB)}, "unk_token": "w0"}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": {"type": "WhitespaceSplit"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return tmp_path


@pytest.mark.timeout(240)
def test_texts_come_back_as_vectors_of_the_reference_also_from_an_engine_that_was_started_again(folder: Path) -> None:
    runner = EncoderRunner(load_encoder(folder, EncoderReference(), torch.float32))
    expected = []
    for result in runner.run([EncoderItem("embed", row) for row in ROWS]):
        assert isinstance(result, Embedding)
        expected.append(result.vector)
    with Server("valkey", port=None) as server:
        settings = fleet_settings(server.url, model=str(folder), device=DEVICE, dtype="float32")
        with Fleet(settings) as fleet, Client(settings, timeout_s=100) as client:
            for texts_per_request in (1, 7):
                found = client.embed([words(row) for row in ROWS], texts_per_request=texts_per_request)
                torch.testing.assert_close(torch.tensor(found.numpy()), torch.stack(expected), atol=1e-4, rtol=1e-4)
                os.kill(fleet.pids("engine")[0], signal.SIGKILL)
            found = client.embed([words(row) for row in ROWS[:5]])
            torch.testing.assert_close(torch.tensor(found.numpy()), torch.stack(expected[:5]), atol=1e-4, rtol=1e-4)
