import errno
import hashlib
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from headrace.errors import ConfigurationError, KernelError
from headrace.kernels import build
from headrace.kernels.device import open_device
from headrace.kernels.launch import load

TARGET = build.Target.of("thing", "sm_90a", {"B": 2, "A": "float"})


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources, and an nvcc that only has a version."""
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "thing.cu").write_text('#include "near.cuh"\nsource')
    (folder / "near.cuh").write_text('#pragma once\n  #include "common.cuh"\n')
    (folder / "common.cuh").write_text("header")
    (folder / "other.cuh").write_text("header")
    monkeypatch.setattr(build, "CUDA_DIR", folder)
    monkeypatch.setattr(build, "nvcc_version", lambda: "13.0")
    return folder


def compile_slowly(target: build.Target) -> bytes:
    log = Path(os.environ["COMPILED"])
    with log.open("a") as file:
        file.write("once\n")
    time.sleep(0.3)
    return b"machine code " * 1000


def ask(cache: Path) -> bytes:
    return build.cubin(TARGET, cache)


def test_many_processes_compile_once(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_compile", compile_slowly)
    monkeypatch.setenv("COMPILED", str(tmp_path / "log"))
    with multiprocessing.get_context("fork").Pool(6) as pool:
        found = pool.map(ask, [tmp_path / "cache"] * 6)
    assert set(found) == {b"machine code " * 1000}
    assert (tmp_path / "log").read_text() == "once\n"
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_damaged_file_is_compiled_again(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_compile", lambda target: b"good")
    build.cubin(TARGET, tmp_path)
    (path,) = tmp_path.glob("*.cubin")
    for damaged in (b"", b"half", hashlib.sha256(b"other").digest() + b"good"):
        path.write_bytes(damaged)
        assert build.cubin(TARGET, tmp_path) == b"good"
        assert path.read_bytes().endswith(b"good")


def test_other_users_may_read_what_one_has_compiled(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_compile", lambda target: b"good")
    build.cubin(TARGET, tmp_path)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.glob("*.cubin")] == [0o644]


def test_a_folder_that_cannot_be_made_is_told_with_what_to_do(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_compile", lambda target: b"good")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/kernels .*; set HEADRACE_CACHE_DIR"):
        build.cubin(TARGET, tmp_path / "file" / "kernels")


def test_a_kernel_that_cannot_be_kept_serves_all_the_same(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "_compile", lambda target: b"x" * 10_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a full disk: the file begins, and breaks off. (Python ignores the signal that comes with it.)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert build.cubin(TARGET, tmp_path / "cache") == b"x" * 10_000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "is not kept" in caplog.text
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert build.cubin(TARGET, tmp_path / "cache") == b"x" * 10_000
    assert list((tmp_path / "cache").glob("*.cubin"))


def test_what_stands_in_the_place_of_a_kernel_is_in_nobodys_way(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_compile", lambda target: b"good")
    (tmp_path / f"thing-{build._key(TARGET)}.cubin").mkdir()
    assert build.cubin(TARGET, tmp_path) == b"good"


def test_a_compiler_without_room_for_its_files_is_told(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    package, compiler, driver = (types.ModuleType(name) for name in ("pycuda", "pycuda.compiler", "pycuda.driver"))
    compiler.compile = full  # type: ignore[attr-defined]
    driver.CompileError = RuntimeError  # type: ignore[attr-defined]
    for module in (package, compiler, driver):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(KernelError, match=r"thing\.cu cannot be compiled: .*No space left"):
        build.cubin(TARGET, tmp_path)


def test_all_that_matters_changes_the_key(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [build._key(TARGET)]
    keys.append(build._key(build.Target.of("thing", "sm_80", {"A": "float", "B": 2})))
    keys.append(build._key(build.Target.of("thing", "sm_90a", {"A": "float", "B": 3})))
    (sources / "thing.cu").write_text('#include "near.cuh"\nsource of another kind')
    keys.append(build._key(TARGET))
    (sources / "common.cuh").write_text("another header")
    keys.append(build._key(TARGET))
    (sources / "near.cuh").write_text("")
    keys.append(build._key(TARGET))
    monkeypatch.setattr(build, "nvcc_version", lambda: "13.1")
    keys.append(build._key(TARGET))
    assert len(set(keys)) == len(keys)


def test_a_header_that_is_not_included_does_not_change_the_key(sources: Path) -> None:
    key = build._key(TARGET)
    (sources / "other.cuh").write_text("another header")
    assert build._key(TARGET) == key


def test_headers_that_include_each_other_are_read_once(sources: Path) -> None:
    (sources / "common.cuh").write_text('#include "near.cuh"\nheader')
    assert len(build._sources(sources / "thing.cu")) == 3


def test_no_header_that_the_compiler_reads_is_missing_from_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cuda"
    shutil.copytree(build.CUDA_DIR, folder)
    monkeypatch.setattr(build, "CUDA_DIR", folder)
    headers = {path.name for path in folder.glob("*.cuh")}
    for path in folder.glob("*.cu"):
        asked = subprocess.run(["g++", "-M", "-MG", "-x", "c++", path], capture_output=True, text=True, check=True)
        read = {Path(word).name for word in asked.stdout.split()} & headers
        assert read, path.name
        assert read <= build._sources(path).keys(), path.name


def test_the_order_of_macros_does_not_matter() -> None:
    assert build.Target.of("thing", "sm_90a", {"A": "float", "B": 2}) == TARGET
    assert TARGET.flags[-2:] == ["-DA=float", "-DB=2"]


def test_a_compiler_that_fails_leaves_nothing_and_frees_the_lock(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(target: build.Target) -> bytes:
        raise KernelError("no")

    monkeypatch.setattr(build, "_compile", fail)
    for _ in range(2):
        with pytest.raises(KernelError, match="no"):
            build.cubin(TARGET, tmp_path)
    assert not list(tmp_path.glob("*.cubin"))


def test_architectures_are_named() -> None:
    named = [build.architecture(capability) for capability in ((8, 0), (8, 9), (9, 0), (12, 0))]
    assert named == ["sm_80", "sm_89", "sm_90a", "sm_120"]
    with pytest.raises(ConfigurationError, match=r"8\.0 or newer"):
        build.architecture((7, 5))


def test_a_missing_compiler_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build.nvcc_version.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="nvcc is not on the PATH"):
        build.nvcc_version()


def test_a_missing_pycuda_is_told(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pycuda", "pycuda.compiler", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigurationError, match="PyCUDA cannot be imported"):
        build.cubin(TARGET, tmp_path)
    open_device.cache_clear()
    with pytest.raises(ConfigurationError, match="PyCUDA cannot be imported"):
        open_device(0)


@pytest.mark.parametrize(("cuda", "remedy"), [("13.0", "check the driver"), (None, "install a torch that is built")])
def test_a_missing_gpu_is_told(monkeypatch: pytest.MonkeyPatch, cuda: str | None, remedy: str) -> None:
    driver = types.ModuleType("pycuda.driver")
    package = types.ModuleType("pycuda")
    package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    open_device.cache_clear()
    with pytest.raises(ConfigurationError, match=f"torch finds no CUDA device; {remedy}"):
        open_device(0)


def test_a_gpu_that_the_driver_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class RefusalError(Exception):
        pass

    def refuse() -> None:
        raise RefusalError("cuInit failed: out of memory")

    package, driver = types.ModuleType("pycuda"), types.ModuleType("pycuda.driver")
    package.driver, driver.Error, driver.init = driver, RefusalError, refuse  # type: ignore[attr-defined]
    for module in (package, driver):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    open_device.cache_clear()
    with pytest.raises(ConfigurationError, match="cuda:0 cannot be opened: cuInit failed: out of memory; see who else"):
        open_device(0)


def test_signatures_and_devices_are_checked_before_anything_is_opened() -> None:
    with pytest.raises(KernelError, match="letters"):
        load("rms_norm", "rms_norm", "PX", torch.device("cuda", 0))
    with pytest.raises(KernelError, match="runs on a GPU"):
        load("rms_norm", "rms_norm", "P", torch.device("cpu"))


def test_the_cache_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE_DIR", "/chosen")
    assert build.default_cache_dir() == Path("/chosen/kernels")
    monkeypatch.delenv("HEADRACE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert build.default_cache_dir() == Path("/xdg/headrace/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/one")
    assert build.default_cache_dir() == Path("/home/one/.cache/headrace/kernels")
