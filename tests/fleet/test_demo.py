"""The demo: an answer, one line of figures, and nothing left."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fleet.traces import MARK, processes_with, short_folder, user_environ
from tests.waiting import LIMIT_S, until

from headrace.workers.model_store.store import ModelFolder


@pytest.fixture
def folder() -> Iterator[Path]:
    """For temporary files: the demo's alone."""
    with short_folder() as folder:
        yield folder


@pytest.fixture
def demo(model: ModelFolder, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo as a process."""
    command = [sys.executable, "-m", "headrace", "demo", "--max-tokens", "40", "Tell me about the sea."]
    environ = user_environ() | {"TMPDIR": str(folder), MARK: str(folder)}
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    ) as process:
        yield process
        process.kill()


def _assert_nothing_is_left(folder: Path) -> None:
    until(lambda: processes_with(folder) == [])
    assert list(folder.iterdir()) == []


def test_the_demo_answers_then_says_how_fast_and_leaves_nothing(demo: subprocess.Popen[str], folder: Path) -> None:
    out, err = demo.communicate(timeout=100)
    assert demo.returncode == 0
    assert len(out.split()) > 5
    assert re.fullmatch(r"first token after \d+ ms, then [0-9.]+ tokens/s \(\d+ tokens\)\n", err)
    _assert_nothing_is_left(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_middle_of_the_answer_leaves_nothing(
    demo: subprocess.Popen[str], folder: Path, number: signal.Signals
) -> None:
    assert demo.stdout is not None
    assert demo.stdout.read(1)
    demo.send_signal(number)
    demo.communicate(timeout=LIMIT_S)
    _assert_nothing_is_left(folder)


def test_ctrl_c_at_the_very_start_leaves_nothing(demo: subprocess.Popen[str], folder: Path) -> None:
    time.sleep(1.0)
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=LIMIT_S)
    _assert_nothing_is_left(folder)
