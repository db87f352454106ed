import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[3] / "scripts" / "bench"
NAMES = [path.name for path in sorted(SCRIPTS.glob("*.py")) if "need_gpu()" in path.read_text()]


@pytest.mark.parametrize("name", NAMES)
def test_what_measures_a_gpu_says_that_there_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = ["--device", "cuda"] if name == "allocator.py" else []
    monkeypatch.setattr(sys, "argv", [name, *device])
    with pytest.raises(SystemExit, match="no GPU: torch finds no CUDA device to measure; see `headrace doctor`"):
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def test_all_scripts_about_kernels_look_for_a_gpu() -> None:
    assert {path.name for path in SCRIPTS.glob("kernels*.py")} | {path.name for path in SCRIPTS.glob("gpu_*.py")} < set(
        NAMES
    )
