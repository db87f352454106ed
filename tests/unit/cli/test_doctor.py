"""What is missing is simulated where it cannot be taken away; ``tests/gpu`` has a machine where all is there."""

from pathlib import Path

import pytest
import torch
from tests.unit.cli.conftest import Headrace

from headrace.cli import doctor
from headrace.errors import ConfigurationError
from headrace.kernels import build, device


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(index: int) -> None:
        raise ConfigurationError(f"there is no cuda:{index}")

    monkeypatch.setattr(device, "open_device", refuse)


def test_a_machine_without_a_gpu_is_well_if_nobody_asks_for_one(headrace: Headrace) -> None:
    status, out, _ = headrace("doctor")
    assert status == 0
    assert f"torch     {torch.__version__}" in out
    assert "failed  GPU       there is no cuda:0" in out
    assert "Engines run on this machine's CPU" in out


def test_what_is_missing_for_the_device_that_is_asked_for_is_an_error(headrace: Headrace) -> None:
    status, out, err = headrace("doctor", "--device", "cuda:3")
    assert status == 1
    assert "there is no cuda:3" in out
    assert "engines cannot run on cuda:3: see GPU, " in err


def test_the_device_may_come_from_the_settings(headrace: Headrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_DEVICE", "cuda")
    assert headrace("doctor")[0] == 1


def test_a_missing_compiler_is_told_with_what_to_do(
    headrace: Headrace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    build.nvcc_version.cache_clear()
    assert (
        "failed  compiler  no CUDA compiler: nvcc is not on the PATH; install the CUDA toolkit" in headrace("doctor")[1]
    )
    build.nvcc_version.cache_clear()


def test_a_gpu_that_torch_cannot_use_fails_its_check(headrace: Headrace, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(index: int) -> None:
        raise RuntimeError("CUDA error: device is lost")

    monkeypatch.setattr(device, "open_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    monkeypatch.setattr(doctor, "_kernel", lambda index: "compiled and ran")
    status, out, _ = headrace("doctor", "--device", "cuda")
    assert status == 1
    assert "failed  GPU       CUDA error: device is lost" in out
    assert "ok      kernel    compiled and ran" in out


def test_a_cache_that_cannot_be_written_is_told_with_what_to_do(
    headrace: Headrace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "file"))
    out = headrace("doctor")[1]
    assert "failed  cache" in out
    assert "set HEADRACE_CACHE_DIR" in out


def test_a_device_that_cannot_be_one_is_refused(headrace: Headrace) -> None:
    status, _, err = headrace("doctor", "--device", "gpu")
    assert status == 2
    assert "device" in err
