"""The script's verdicts, with measurements in the GPU's place."""

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from headrace.testing import gpu_profile, teacher_forcing
from headrace.testing.gpu_profile import Launches
from headrace.testing.teacher_forcing import LogitErrors
from headrace.workers.engine import device_engine

SCRIPT = Path(__file__).parents[3] / "scripts" / "bench" / "gpu_exactness.py"
NEAR = LogitErrors(2, greatest=0.4, mean=0.06, peer_greatest=0.5, peer_mean=0.07, spread=1.0)
OURS, PRODUCT = Launches("rms_norm", "ours", 57, 90.0), Launches("nvjet_x", "product", 113, 900.0)
STRANGER = Launches("at_copy", "other", 1, 1.0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """Run the script: its status, its rows by case and metric, and what it says is wrong."""
    has = SimpleNamespace(total_memory=139 << 30, uuid="0123456789abcdef")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: has)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(device_engine, "DeviceEngine", lambda *args: None)

    def call(only: str, **measured: Any) -> tuple[int, Any, str]:
        has.total_memory = measured.get("memory_bytes", has.total_memory)
        monkeypatch.setattr(teacher_forcing, "logit_errors", lambda shape, device: iter(measured["errors"]))

        def steps(made: object, num_rows: int, *, long_prompt: int) -> Iterator[tuple[str, list[Launches]]]:
            assert long_prompt
            yield "prompts alone", [OURS, PRODUCT]
            yield "rows that decode", measured["launches"]

        monkeypatch.setattr(gpu_profile, "profile_steps", steps)
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--only", only])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        said = capsys.readouterr()
        rows = {(row["case"], row["metric"]): row for row in json.loads(said.out.splitlines()[-1])}
        return int(str(ended.value.code)), rows, said.err

    return call


def test_errors_stand_beside_those_of_transformers(run: Callable[..., tuple[int, Any, str]]) -> None:
    status, rows, said = run("logits/Q06", errors=[NEAR, replace(NEAR, num_rows=256)])
    assert (status, said) == (0, "")
    assert len(rows) == 4
    row = rows["gpu/logits/Q06/256", "greatest_error"]
    assert (row["value"], row["peer_value"], row["card"], row["card_id"]) == (0.4, 0.5, "a GPU", "01234567")


@pytest.mark.parametrize("wrong", [{"greatest": 1.01}, {"mean": 0.085}, {"spread": 0.05}, {"greatest": float("nan")}])
def test_logits_further_off_than_the_rule_allows_end_with_status_1(
    run: Callable[..., tuple[int, Any, str]], wrong: dict[str, Any]
) -> None:
    status, rows, said = run("logits/Q06", errors=[replace(NEAR, **wrong)])
    assert status == 1
    assert rows
    assert said.startswith("gpu/logits/Q06: 2 rows: error")


def test_a_gpu_that_is_too_small_is_told_and_not_passed_over(run: Callable[..., tuple[int, Any, str]]) -> None:
    status, rows, said = run("logits/L8B", errors=[NEAR], memory_bytes=80 << 30)
    assert (status, rows) == (1, {})
    assert said == "gpu/logits/L8B: weights in three forms want 88 GiB, and the GPU has 80: leave it out by --only\n"


def test_launches_of_a_step_are_told_by_whose_they_are(run: Callable[..., tuple[int, Any, str]]) -> None:
    status, rows, said = run("step_kernels/L8B", launches=[OURS])
    assert (status, said) == (0, "")
    metrics = {metric: (row["value"], row["peer_value"]) for (_, metric), row in rows.items()}
    assert metrics["ours (prompts alone)"] == (57, 170)
    assert metrics["library_products (prompts alone)"] == (113, 170)
    assert metrics["ours (rows that decode)"] == (57, 57)
    assert metrics["others (rows that decode)"] == (0, 57)


def test_a_kernel_of_anybody_elses_ends_with_status_1(run: Callable[..., tuple[int, Any, str]]) -> None:
    status, rows, said = run("step_kernels/L8B", launches=[OURS, STRANGER])
    assert status == 1
    assert rows["gpu/step_kernels/L8B", "others (rows that decode)"]["value"] == 1
    assert said == "gpu/step_kernels/L8B: rows that decode ran at_copy\n"
