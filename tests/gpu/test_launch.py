import subprocess
import sys
from pathlib import Path

import pytest
import torch

from headrace.errors import ConfigurationError, KernelError
from headrace.kernels import build
from headrace.kernels.device import open_device
from headrace.kernels.launch import Kernel, load

SOURCE = """
#include "common.cuh"
extern "C" __global__ void scale(float* out, const float* x, int count, float by) {
    const int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) out[at] = x[at] * by;
}
"""


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: torch.device) -> Kernel:
    """A kernel from a folder of its own, cached in another."""
    cuda = tmp_path / "cuda"
    cuda.mkdir()
    (cuda / "scale.cu").write_text(SOURCE)
    (cuda / "common.cuh").write_text((build.CUDA_DIR / "common.cuh").read_text())
    monkeypatch.setattr(build, "CUDA_DIR", cuda)
    monkeypatch.setenv("HEADRACE_CACHE_DIR", str(tmp_path / "cache"))
    return load("scale", "scale", "PPif", device)


def run(scale: Kernel, x: torch.Tensor, by: float) -> torch.Tensor:
    out = torch.empty_like(x)
    scale((-(-x.numel() // 256),), (256,), out, x, x.numel(), by)
    return out


def test_a_kernel_runs_on_every_kind_of_stream_in_order(scale: Kernel, device: torch.device) -> None:
    x = torch.randn(1 << 20, device=device)
    torch.cuda.synchronize()
    foreign = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    for stream in (torch.cuda.default_stream(), foreign, open_device(scale.device.index).new_stream()):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call]
            late = x * 3
            out = run(scale, run(scale, late, 2.0), 0.5)
            again = out + 1
        torch.cuda.synchronize()
        assert torch.equal(again, x * 3 + 1)


@pytest.mark.parametrize("ours", [False, True])
def test_launches_are_captured_in_torch_s_graphs(scale: Kernel, device: torch.device, ours: bool) -> None:
    x = torch.zeros(1000, device=device)
    foreign = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream = open_device(scale.device.index).new_stream() if ours else foreign
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = run(scale, run(scale, x + 1, 3.0), 2.0) - 1
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, torch.full_like(x, (value + 1) * 6 - 1))


def test_what_a_kernel_cannot_take_is_refused(scale: Kernel, device: torch.device) -> None:
    x = torch.ones(10, device=device)
    with pytest.raises(KernelError, match="4 arguments"):
        scale((1,), (256,), x, x, 10)
    with pytest.raises(KernelError, match="cpu"):
        scale((1,), (256,), x, x.cpu(), 10, 1.0)
    with pytest.raises(KernelError, match="number"):
        scale((1,), (256,), x, x, x, 1.0)
    with pytest.raises(KernelError, match="not launched"):
        scale((1,), (256,), x, x, 2**40, 1.0)
    with pytest.raises(KernelError, match="not launched"):
        scale((1,), (2048,), x, x, 10, 1.0)
    with pytest.raises(KernelError, match="shared memory"):
        scale((1,), (256,), x, x, 10, 1.0, shared_bytes=1)
    scale((0,), (256,), x, x, 10, 5.0)
    torch.cuda.synchronize()
    assert torch.equal(x, torch.ones(10, device=device))


def test_a_source_that_does_not_compile_is_told_with_the_compiler_s_words(scale: Kernel, device: torch.device) -> None:
    (build.CUDA_DIR / "broken.cu").write_text('extern "C" __global__ void broken() { undeclared(); }')
    with pytest.raises(KernelError, match="undeclared"):
        load("broken", "broken", "", device)
    with pytest.raises(KernelError, match="no kernel source"):
        load("missing", "missing", "", device)
    with pytest.raises(KernelError, match="prepared"):
        load("scale", "another", "", device)
    with pytest.raises(KernelError, match="shared memory"):
        load("scale", "scale", "PPif", device, shared_bytes=1 << 30)


def test_a_gpu_that_is_not_there_is_told(scale: Kernel) -> None:
    with pytest.raises(ConfigurationError, match="no cuda:99"):
        open_device(99)


def test_the_cache_serves_again_without_the_compiler(
    scale: Kernel, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    (cached,) = build.default_cache_dir().glob("scale-*.cubin")

    def never(target: build.Target) -> bytes:
        raise AssertionError("compiled again")

    monkeypatch.setattr(build, "_compile", never)
    again = load("scale", "scale", "PPif", device)
    x = torch.ones(5, device=device)
    assert torch.equal(run(again, x, 2.0), x * 2)
    cached.write_bytes(cached.read_bytes()[:-10])
    with pytest.raises(AssertionError, match="compiled again"):
        load("scale", "scale", "PPif", device)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_kernels_run_on_a_second_gpu(scale: Kernel) -> None:
    second = load("scale", "scale", "PPif", torch.device("cuda", 1))
    x = torch.ones(100, device="cuda:1")
    assert torch.equal(run(second, x, 2.0), x * 2)
    with pytest.raises(KernelError, match="cuda:1"):
        run(second, torch.ones(10, device="cuda:0"), 2.0)


_USES_A_GPU = """
import torch
from headrace.kernels.add import add
from headrace.kernels.device import open_device

class Kept: pass

device = torch.device("cuda", 0)
with torch.cuda.stream(open_device(0).new_stream()):
    kept = Kept()
    kept.itself = kept  # freed last, when much else has gone
    kept.pinned = torch.ones(1 << 20, pin_memory=True)
    kept.x = torch.zeros(1 << 20, device=device)
    kept.x.copy_(kept.pinned, non_blocking=True)
    add(kept.x, kept.x)
"""


def test_a_process_that_has_used_a_gpu_ends_in_peace() -> None:
    ended = subprocess.run([sys.executable, "-P", "-c", _USES_A_GPU], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
