"""The script that runs compute-sanitizer, beside a stand-in for the tool that no machine without a GPU has."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tests.waiting import until

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


def noting(folder: Path, body: str) -> Path:
    """Stand in for the tool by one that notes what it is asked; ``$tool`` and ``$program`` say what."""
    tool, asked = folder / "compute-sanitizer", folder / "asked"
    tool.write_text(f"""#!/bin/sh
tool=$2
for program; do :; done
echo "$tool $program" >> {asked}
{body}
""")
    tool.chmod(0o755)
    return asked


def test_all_programs_go_through_both_tools_and_one_finding_is_enough(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = noting(
        tmp_path,
        """echo "$program: rows: right"; echo "== SUMMARY of $program"
[ "$tool $program" != "memcheck norms" ] || { echo "a hazard"; exit 9; }""",
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sys, "argv", ["sanitize.py", "--processes", "4"])
    assert script.main() == 1
    clean = [name for name, program in script.PROGRAMS.items() if program.kernels]
    expected = {f"{tool} {name}" for tool in ("memcheck", "racecheck") for name in clean}
    assert sorted(asked.read_text().splitlines()) == sorted(expected)
    said = capsys.readouterr().out
    assert "a hazard" in said
    assert "racecheck norms: 1 results right; SUMMARY of norms" in said
    asked.unlink()
    monkeypatch.setattr(sys, "argv", ["sanitize.py", "--tool", "racecheck", "norms", "draws"])
    assert script.main() == 0
    assert sorted(asked.read_text().splitlines()) == ["racecheck draws", "racecheck norms"]


def test_a_program_that_takes_too_long_is_ended_and_is_not_clean(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    noting(tmp_path, f"""sleep 60 & echo $! > {tmp_path}/child; echo "$program: rows: right"; wait""")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sys, "argv", ["sanitize.py", "--tool", "racecheck", "--timeout-s", "1", "norms"])
    assert script.main() == 1
    assert "racecheck norms: not done within 1 s" in capsys.readouterr().out
    child = int((tmp_path / "child").read_text())
    until(lambda: not is_running(child))


def is_running(process: int) -> bool:
    """Whether it is there, and more than a number that nobody has asked for."""
    try:
        return "(sleep) Z" not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_missing_tool_and_unknown_programs_are_named(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for arguments, said in (
        ([], "compute-sanitizer is not on the PATH"),
        (["products"], "no program products"),
        (["--processes", "0"], "--processes is 1 at least"),
        (["--timeout-s", "0"], "--timeout-s more than nothing"),
    ):
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
