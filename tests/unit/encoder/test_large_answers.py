import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from headrace.testing.stub_encoder import WIDTH, StubEncoder
from headrace.workers.channel import Decoder, Encoded, Message
from headrace.workers.encoder import process
from headrace.workers.encoder.engine import EncoderEngine
from headrace.workers.encoder.findings import Findings
from headrace.workers.encoder.scratch import EncoderScratch
from headrace.workers.engine import listening
from headrace.workers.engine.cost_keeper import CostKeeper
from headrace.workers.engine.listening import Served
from headrace.workers.engine.measurement import Extent
from headrace.workers.engine.settings import EngineSettings


class LargeAnswers(EncoderEngine):
    """Two steps; the second one takes until the first one's answer has arrived, which no socket holds."""

    def __init__(self) -> None:
        super().__init__(StubEncoder(), Findings(WIDTH, normalises=False), step_tokens=100)
        self.arrived = threading.Event()
        self.waits: list[bool] = []

    @property
    def has_rows(self) -> bool:
        return len(self.waits) < 2

    def step(self) -> Encoded:
        self.waits.append(not self.waits or self.arrived.wait(20))
        return Encoded(((len(self.waits), b"x" * (1 << 20), ""),))


def test_answers_that_a_socket_does_not_hold_do_not_wait_for_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, served = LargeAnswers(), list[Served]()
    settings = EngineSettings("socket", "folder", "r1", num_threads=torch.get_num_threads())
    costs = CostKeeper(
        Extent(64, 128, 4096), lambda: EncoderScratch(StubEncoder(), 97, 100), worker_class="c", budget_ms=0, file=None
    )
    monkeypatch.setattr(process, "load_for", lambda *_: None)
    monkeypatch.setattr(process, "make_runner", lambda *_: SimpleNamespace(prepare=lambda: False))
    monkeypatch.setattr(process, "make_engine", lambda *_: engine)
    monkeypatch.setattr(process, "keep_costs", lambda *_: costs)
    monkeypatch.setattr(process, "look_seldom", lambda: None)
    monkeypatch.setattr(process, "listen", lambda _, given: served.append(given))
    process.serve(settings)
    decoder, received = Decoder(), list[Message]()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as courier:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        courier.connect(str(tmp_path / "s"))
        thread = threading.Thread(target=listening._serve_courier, args=(listener, served[0], settings), daemon=True)
        thread.start()
        while sum(isinstance(message, Encoded) for message in received) < 2:
            received += decoder.feed(courier.recv(1 << 16))
            if received and isinstance(received[-1], Encoded):
                engine.arrived.set()
        courier.close()
        thread.join(timeout=20)
    assert engine.waits == [True, True]
