"""Any mixture of items on a GPU, answered as on a CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny_encoders import make_encoder, texts

from headrace.errors import DeviceLostError
from headrace.kernels.encoder_reference import EncoderReference
from headrace.workers.encoder.device_runner import DeviceRunner
from headrace.workers.encoder.items import Classes, Embedding, EncoderItem, Fills, Relevance, Result
from headrace.workers.encoder.loading import load_encoder
from headrace.workers.encoder.runner import EncoderRunner
from headrace.workers.encoder.runtimes import DeviceRuntime
from headrace.workers.encoder.tables import table_for

SHAPE: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 4}


def runners(folder: Path, device: torch.device) -> tuple[DeviceRunner, EncoderRunner]:
    on_gpu = load_encoder(folder, table_for(device), torch.float32)
    on_cpu = load_encoder(folder, EncoderReference(), torch.float32)
    return DeviceRunner(on_gpu, device, batch_tokens=1000), EncoderRunner(on_cpu)


def numbers(results: Sequence[Result]) -> torch.Tensor:
    found: list[torch.Tensor] = []
    for result in results:
        match result:
            case Embedding():
                found.append(result.vector)
            case Classes():
                found.append(torch.tensor(result.scores))
            case Relevance():
                found.append(torch.tensor([result.score, result.logit]))
            case Fills():
                found += [torch.tensor([*fill.token_ids, *fill.scores]) for fill in result.fills]
    return torch.cat(found)


@pytest.mark.parametrize(
    ("task", "changes"),
    [("Model", {}), ("ForSequenceClassification", {"num_labels": 3}), ("ForSequenceClassification", {"num_labels": 1}),
     ("ForMaskedLM", {})],
)  # fmt: skip
def test_items_are_answered_as_on_a_cpu(
    device: torch.device, tmp_path: Path, task: str, changes: dict[str, Any]
) -> None:
    make_encoder("bert", task, folder=tmp_path, **SHAPE, **changes)
    on_gpu, on_cpu = runners(tmp_path, device)
    rows = texts(5, 1, 130, 40, 300, 7)
    items = [EncoderItem("embed", row, pooling=("mean", "cls", "max", "last")[i % 4], normalise=i % 2 == 0)
             for i, row in enumerate(rows)]  # fmt: skip
    items += [EncoderItem("classify", row) for row in rows if "classify" in on_cpu.kinds]
    items += [EncoderItem("rerank", row) for row in rows if "rerank" in on_cpu.kinds]
    items += [EncoderItem("fill", row, places=(0,)) for row in rows if "fill" in on_cpu.kinds]
    # More than once: the first time each kernel is launched, then graphs are captured and replayed.
    for _ in range(3):
        torch.testing.assert_close(numbers(on_gpu.run(items)), numbers(on_cpu.run(items)), atol=2e-4, rtol=2e-4)


def test_an_error_that_is_no_loss_of_the_gpu_is_told_as_it_is(device: torch.device, tmp_path: Path) -> None:
    make_encoder("bert", folder=tmp_path, **SHAPE)
    on_gpu, _ = runners(tmp_path, device)
    with pytest.raises(Exception, match="token") as caught:
        on_gpu.run([EncoderItem("embed", ())])
    assert not isinstance(caught.value, DeviceLostError)
    assert len(on_gpu.run([EncoderItem("embed", (6, 7))])) == 1


def test_sizes_that_are_captured_ahead_answer_texts_that_come_later(device: torch.device, tmp_path: Path) -> None:
    make_encoder("bert", folder=tmp_path, **SHAPE)
    on_gpu, on_cpu = runners(tmp_path, device)
    graphs = on_gpu._loaded.encoder.model.runtime
    assert isinstance(graphs, DeviceRuntime)
    while on_gpu.prepare():
        pass
    captured = graphs.costs
    rows = [texts(5), texts(100, 90), texts(*[7] * 20), texts(*[14] * 64)]
    for row in rows:
        items = [EncoderItem("embed", text) for text in row]
        torch.testing.assert_close(numbers(on_gpu.run(items)), numbers(on_cpu.run(items)), atol=2e-4, rtol=2e-4)
    assert graphs.costs == captured, "a text was the first of its size"
