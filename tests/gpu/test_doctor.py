import torch
from typer.testing import CliRunner

from headrace.cli.app import app


def test_a_machine_with_a_gpu_and_a_compiler_passes_the_doctor(device: torch.device) -> None:
    outcome = CliRunner().invoke(app, ["doctor", "--device", f"cuda:{device.index}"])
    assert outcome.exit_code == 0, outcome.output
    assert "failed" not in outcome.output
    assert f"headrace up --device cuda:{device.index}" in outcome.output
