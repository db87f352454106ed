import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headrace.testing.sanitized import PROGRAMS

SCRIPT = Path(__file__).parents[2] / "scripts" / "sanitize.py"


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if program.kernels])
def test_what_the_sanitizer_runs_is_right_without_it(device: torch.device, name: str) -> None:
    if PROGRAMS[name].is_for_hopper and torch.cuda.get_device_capability(device)[0] != 9:
        pytest.skip("the GPU is no Hopper")
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), "--inside", name], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].endswith(": right")
