import pytest
import torch
from tests.unit.cli.conftest import Headrace


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_there_is_nothing_to_measure(headrace: Headrace) -> None:
    status, _, err = headrace("bench", "gpu", "--cases", "decode")
    assert status == 2
    assert "headrace: no GPU: torch finds no CUDA device to measure; see `headrace doctor`" in err


def test_cases_are_listed_without_a_gpu(headrace: Headrace) -> None:
    status, out, _ = headrace("bench", "gpu", "--list", "--shapes", "Q06", "--cases", "decode", "--cases", "start")
    assert status == 0
    assert out.split() == [*(f"decode/Q06/{rows}" for rows in (1, 8, 32, 64, 128, 256)), "start/Q06"]


def test_an_unknown_case_is_named(headrace: Headrace) -> None:
    status, _, err = headrace("bench", "gpu", "--cases", "decode/L8B/7")
    assert status == 2
    assert "--cases decode/L8B/7: no case has such a name; there are context, decode, deterministic, idle" in err
