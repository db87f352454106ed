"""``scripts/setup`` where something is missing: it says what, and what to do."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of a fresh clone as set-up looks at, in a folder with a space in its name."""
    folder = tmp_path / "a clone"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(_ROOT / "scripts" / "setup", folder / "scripts")
    shutil.copy(_ROOT / "pyproject.toml", folder)
    return folder


def _set_up(clone: Path, environ: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    command = ["bash", str(clone / "scripts" / "setup"), *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, cwd="/", check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def _environ_without_python(folder: Path) -> dict[str, str]:
    folder.mkdir()
    for tool in ("bash", "dirname", "cksum", "uname"):
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    (folder / "python3").write_text("#!/bin/sh\necho Python 3.9.2\nexit 1\n")
    (folder / "python3").chmod(0o755)
    return {"PATH": str(folder)}


def test_without_a_suitable_python_it_says_which_one_to_install(clone: Path, tmp_path: Path) -> None:
    status, said = _set_up(clone, _environ_without_python(tmp_path / "bin"))
    assert status == 1
    assert "no Python 3.11, 3.12 or 3.13 was found (python3 is: Python 3.9.2)" in said
    assert "apt-get install python3.11" in said
    assert not (clone / ".venv").exists()


def test_a_wrong_headrace_python_is_named(clone: Path) -> None:
    status, said = _set_up(clone, dict(os.environ) | {"HEADRACE_PYTHON": "/bin/sh"})
    assert (status, said) == (1, "setup: HEADRACE_PYTHON=/bin/sh is not a Python 3.11, 3.12 or 3.13\n")


def test_an_unknown_argument_is_refused(clone: Path) -> None:
    status, said = _set_up(clone, dict(os.environ), "--devv")
    assert status == 1
    assert "--devv" in said


def test_without_a_network_it_says_so_before_anything_is_installed(clone: Path) -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    status, said = _set_up(clone, dict(os.environ) | nowhere)
    assert status == 1
    assert said.splitlines()[-1].startswith("setup: the package index cannot be reached: a network is needed once")
    assert not (clone / ".venv" / "headrace-setup").exists()


def test_nothing_is_done_while_nothing_has_changed(clone: Path, tmp_path: Path) -> None:
    environ = _environ_without_python(tmp_path / "bin")
    project = (clone / "pyproject.toml").read_text()
    checksum = subprocess.run(["cksum"], input=project, capture_output=True, text=True, check=True)
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").symlink_to(shutil.which("true") or "true")
    stamp = clone / ".venv" / "headrace-setup"
    stamp.write_text(f"{clone} any {checksum.stdout.strip()}\nno\n")
    assert _set_up(clone, environ) == (0, "")
    assert _set_up(clone, environ, "--dev")[0] == 1  # what was made has no tools for tests
    stamp.write_text(f"{clone} any {checksum.stdout.strip()}\nyes\n")
    assert _set_up(clone, environ, "--dev") == (0, "")
    with (clone / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert _set_up(clone, environ)[0] == 1
