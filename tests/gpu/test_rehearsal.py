"""What an engine has ready before its first request, so that nobody waits for a compiler."""

import random
from pathlib import Path

import pytest
import torch
from tests.unit.engine.kernels_asked_for import forget_kernels

from headrace.errors import KernelError
from headrace.kernels import launch
from headrace.kernels.build import Target
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load
from headrace.kernels.rehearsal import Rehearsal
from headrace.testing.plain_params import plain_params
from headrace.testing.small_engines import engine_of
from headrace.testing.tiny_models import LONG_GPT2, LONG_QWEN3, Kind, make_oracle
from headrace.workers.channel import Add


@pytest.fixture(autouse=True)
def no_kernel_is_known() -> None:
    """Forget what other tests have loaded."""
    forget_kernels()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", [LONG_QWEN3, LONG_GPT2], ids=["qwen3", "gpt2"])
def test_requests_of_all_lengths_ask_for_no_kernel_that_is_not_ready(
    kind: Kind, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_oracle(kind, tmp_path)
    made = engine_of(tmp_path, dtype, max_rows=96, kv_tokens=60_000, step_tokens=2048, row_tokens=1024, rehearses=True)
    late: list[str] = []

    def cubin(target: Target) -> bytes:
        late.append(f"{target.source} {target.defines}")
        raise KernelError("too late")

    monkeypatch.setattr(launch, "cubin", cubin)
    rng, lengths = random.Random(1), [*range(1, 40), 100, 300, 500, 900, *range(60, 120), 20, 20]
    num_tokens, engine = 0, made.engine
    for row, length in enumerate(lengths):
        prompt = tuple(rng.choices(range(50), k=length))
        engine.add(Add(row, prompt, (), plain_params(1 + row % 60, temperature=row % 2, seed=row)))
        num_tokens += len(engine.step().tokens)  # one more row by one, and fewer in the end
    while engine.has_rows:
        step = engine.step()
        assert not step.error, late
        num_tokens += len(step.tokens)
    assert (late, num_tokens) == ([], sum(1 + row % 60 for row in range(len(lengths))))


def test_nothing_is_launched_in_a_rehearsal_and_all_is_ready_behind_it(device: torch.device) -> None:
    opened = open_device(torch.cuda.current_device())
    x, y = torch.ones(64, device=device), torch.ones(64, device=device)
    with opened.rehearsing():
        add = load("add", "add", "PPq", device, DTYPE="float", VEC=1, THREADS=64)
        add((1,), (64,), x, y, 64)
        assert opened.rehearsal is not None
        with pytest.raises(KernelError, match="part of another"), opened.rehearsing():
            pass
    torch.cuda.synchronize()
    assert opened.rehearsal is None
    assert torch.equal(x, y)
    add((1,), (64,), x, y, 64)
    torch.cuda.synchronize()
    assert torch.equal(x, 2 * y)


def test_an_error_in_a_rehearsal_leaves_kernels_that_are_loaded_when_they_are_launched(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_device(torch.cuda.current_device())
    monkeypatch.setattr(Rehearsal, "finish", lambda self: pytest.fail("it did not come to its end"))
    x, y = torch.ones(64, device=device), torch.ones(64, device=device)
    loaded: list[Kernel] = []

    def fail() -> None:
        with opened.rehearsing():
            loaded.append(load("add", "add", "PPq", device, DTYPE="float", VEC=1, THREADS=64))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    (add,) = loaded
    add((1,), (64,), x, y, 64)
    torch.cuda.synchronize()
    assert torch.equal(x, 2 * y)
