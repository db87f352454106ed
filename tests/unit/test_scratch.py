"""Folders of a process's own, and what becomes of those whose process was killed."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from headrace.cli import demo
from headrace.scratch import scratch_folder
from headrace.workers import worker


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_folder_names_its_process_and_goes_with_the_block(tmp_path: Path) -> None:
    with scratch_folder("demo", tmp_path) as folder:
        (folder / "file").touch()
        assert folder.parent == tmp_path
        assert folder.name.startswith(f"headrace-demo-{os.getpid()}-")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_of_the_kind_left_is_swept_and_nothing_else(tmp_path: Path, dead_pid: int) -> None:
    left = tmp_path / f"headrace-demo-{dead_pid}-ab_c"
    (left / "appendonlydir").mkdir(parents=True)
    others = [
        f"headrace-demo-{os.getpid()}-abc", "headrace-demo-1-abc", f"headrace-worker-{dead_pid}-abc",
        f"headrace-demo-{dead_pid}", "headrace-demo-mine", "headrace-demo-99999999999999999999-abc",
    ]  # fmt: skip
    for name in others:
        (tmp_path / name).mkdir()
    with scratch_folder("demo", tmp_path) as folder:
        assert {path.name for path in tmp_path.iterdir()} == {*others, folder.name}


def test_a_demo_sweeps_what_a_killed_one_left(tmp_path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / f"headrace-demo-{dead_pid}-abc"
    left.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def stop(settings: object) -> None:
        assert not left.exists()
        [own] = tmp_path.iterdir()
        assert own.name.startswith(f"headrace-demo-{os.getpid()}-")
        raise InterruptedError

    monkeypatch.setattr(demo, "bring_model", stop)
    with pytest.raises(InterruptedError):
        demo.demo("hello")
    assert list(tmp_path.iterdir()) == []


def test_a_worker_meets_its_children_where_a_sockets_path_is_short_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/short")
    assert worker._short_root() == Path("/short")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 60)))
    assert worker._short_root() == Path("/tmp")
