"""Weights that come straight to the GPU are those of the files, to the last bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headrace.errors import ModelError
from headrace.workers.engine.checkpoint import Checkpoint, DeviceCheckpoint
from headrace.workers.engine.file_reader import FileReader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    first = {"a": torch.randn(700, 33), "b": torch.randn(5).bfloat16(), "none": torch.empty(0, 4)}
    second = {"c": torch.randn(64, 128).half(), "d": torch.randn(1)}
    save_file(first, tmp_path / "1.safetensors", {"format": "pt"})
    save_file(second, tmp_path / "2.safetensors")
    files = dict.fromkeys(first, "1.safetensors") | dict.fromkeys(second, "2.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return tmp_path


def test_tensors_are_those_that_mapping_gives(folder: Path, device: torch.device) -> None:
    with Checkpoint(folder) as mapped, DeviceCheckpoint(folder, device) as brought:
        for name, shape in (
            ("a", (700, 33)),
            ("b", (5,)),
            ("c", (64, 128)),
            ("d", (1,)),
            ("none", (0, 4)),
            ("a", (700, 33)),
        ):
            for dtype in (torch.float32, torch.bfloat16):
                found = brought.tensor(name, shape, dtype)
                assert found.device == device
                assert torch.equal(found.cpu(), mapped.tensor(name, shape, dtype))
        for name, shape in (("e", (1,)), ("a", (33, 700))):
            with pytest.raises(ModelError):
                brought.tensor(name, shape, torch.float32)


def test_pieces_of_every_size_arrive_and_memory_that_is_still_read_is_not_written(
    tmp_path: Path, device: torch.device
) -> None:
    content = torch.randint(0, 256, (100_000,), dtype=torch.uint8)
    (tmp_path / "file").write_bytes(content.numpy().tobytes())
    with (tmp_path / "file").open("rb") as file, FileReader(device, num_threads=3, piece_bytes=4096) as reader:
        for begin, length in ((0, 100_000), (1, 4095), (17, 4097), (99_999, 1), (5, 0)):
            target = torch.zeros(length, dtype=torch.uint8, device=device)
            reader.read(file.fileno(), begin, target)
            assert torch.equal(target.cpu(), content[begin : begin + length])
        # A long queue of work reads the target's old bytes: reading into it must not overtake that.
        target, copies = torch.zeros(65_536, dtype=torch.uint8, device=device), []
        for begin in range(0, 30_000, 1000):
            torch.cuda._sleep(200_000)  # type: ignore[no-untyped-call]
            copies.append((target.clone(), begin))
            reader.read(file.fileno(), begin, target)
        for (old, begin), previous in zip(copies[1:], range(0, 29_000, 1000), strict=True):
            assert torch.equal(old.cpu(), content[previous : previous + 65_536]), begin


@torch.inference_mode()
def test_a_thread_that_infers_may_load(folder: Path, device: torch.device) -> None:
    with Checkpoint(folder) as mapped, DeviceCheckpoint(folder, device) as brought:
        expected = mapped.tensor("a", (700, 33), torch.float32)
        assert torch.equal(brought.tensor("a", (700, 33), torch.float32).cpu(), expected)


def test_a_file_that_has_become_shorter_is_an_error(folder: Path, device: torch.device) -> None:
    with DeviceCheckpoint(folder, device) as checkpoint:
        size = (folder / "2.safetensors").stat().st_size
        with (folder / "2.safetensors").open("r+b") as file:
            file.truncate(size - 200)
        with pytest.raises(ModelError, match="bytes too soon"):
            checkpoint.tensor("c", (64, 128), torch.float32)
