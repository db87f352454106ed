import re

import pytest
import torch

from headrace.kernels.build import CUDA_DIR
from headrace.testing import sanitized
from headrace.testing.computed import Computed
from headrace.testing.sanitized import PROGRAMS, Program, run

_KERNEL = re.compile(r'extern "C" __global__ void.*?\)\s+(?!__)(\w+)\(', re.DOTALL)
_CONDITION = re.compile("^#.*\n", re.MULTILINE)


def test_every_kernel_has_a_program_for_the_sanitizer() -> None:
    sources = [_CONDITION.sub("", source.read_text()) for source in CUDA_DIR.glob("*.cu")]
    assert all(_KERNEL.search(source) for source in sources)
    kernels = {kernel for source in sources for kernel in _KERNEL.findall(source)}
    assert kernels == {kernel for program in PROGRAMS.values() for kernel in program.kernels}


def test_a_program_that_leaves_a_kernel_out_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = torch.ones(1)
    programs = {"sums": Program(lambda: iter([Computed("one", one, one)]), ("no_such_kernel",))}
    monkeypatch.setattr(sanitized, "PROGRAMS", programs)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert run("sums") == 1
    assert "no_such_kernel was not loaded: WRONG" in capsys.readouterr().out


def test_a_program_that_computes_nothing_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sanitized, "PROGRAMS", {"sums": Program(lambda: iter([]), ())})
    assert run("sums") == 1
    assert "nothing was computed: WRONG" in capsys.readouterr().out
