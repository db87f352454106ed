"""The script that runs compute-sanitizer, beside a stand-in for the tool that no machine without a GPU has."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from headrace.testing.computed import Computed

SCRIPT = Path(__file__).parents[3] / "scripts" / "sanitize.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sanitize", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(folder: Path, says: str, status: int) -> None:
    tool = folder / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{says}\nEND\nexit {status}\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("says", "status", "expected"),
    [
        ("softmaxes: rows: right\n== RACECHECK SUMMARY: 0 hazards", 0, 0),
        ("softmaxes: rows: right\n== RACECHECK SUMMARY: 1 hazard", 9, 1),
        ("softmaxes: rows: WRONG\n== RACECHECK SUMMARY: 0 hazards", 1, 1),
        ("nothing ran", 0, 1),
    ],
    ids=["clean", "hazard", "wrong", "nothing"],
)
def test_only_right_results_without_hazards_are_clean(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    says: str,
    status: int,
    expected: int,
) -> None:
    stand_in(tmp_path, says, status)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sys, "argv", ["sanitize.py", "--tool", "racecheck", "softmaxes"])
    assert script.main() == expected
    assert ("SUMMARY" in says) == ("SUMMARY" in capsys.readouterr().out)


def test_a_missing_tool_and_unknown_programs_are_named(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for arguments, said in (([], "compute-sanitizer is not on the PATH"), (["products"], "no program products")):
        monkeypatch.setattr(sys, "argv", ["sanitize.py", *arguments])
        with pytest.raises(SystemExit):
            script.main()
        assert said in capsys.readouterr().err


def test_a_result_with_gaps_is_not_right() -> None:
    truth = torch.ones(3)
    assert Computed("", truth.bfloat16(), truth).is_right
    assert not Computed("", torch.tensor([1, torch.nan, 1]), truth).is_right
    assert not Computed("", torch.tensor([1, 1.5, 1]), truth).is_right
    assert Computed("", truth.int(), torch.ones(3, dtype=torch.int64)).is_right
    assert not Computed("", torch.tensor([1, 1, 2]), truth.int()).is_right
