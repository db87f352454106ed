import pytest
import torch

from headrace.testing.sanitized import PROGRAMS, run


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_the_sanitizer_runs_is_right(device: torch.device, name: str) -> None:
    assert run(name) == 0
