"""The Dockerfile against the files that it relies on. No engine builds it here; scripts/test also runs hadolint."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _requirements(folder: Path) -> list[list[str]]:
    """What the Dockerfile's one-liners make of pyproject.toml, in the order in which they stand."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    programs = re.findall(r'RUN python -c "([^"]*)"', DOCKERFILE.replace("\\\n", ""))
    return [
        subprocess.run(
            [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for program in programs
    ]


def test_the_images_install_what_the_project_requires_and_pycuda_where_there_is_a_gpu(tmp_path: Path) -> None:
    slim, cuda = _requirements(tmp_path)
    assert slim == PROJECT["dependencies"] + PROJECT["optional-dependencies"]["int8"]
    assert cuda == PROJECT["dependencies"] + PROJECT["optional-dependencies"]["gpu"]


def test_the_images_have_the_torch_that_the_tests_hold_for() -> None:
    setup = re.search(r"torch_version=(\S+)", (ROOT / "scripts" / "setup").read_text())
    assert setup is not None
    assert re.findall(r"ARG TORCH_VERSION=(\S+)", DOCKERFILE) == [setup[1]] * 2


def test_the_build_sees_every_folder_of_the_package_and_no_other() -> None:
    seen = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    folders = {link.resolve().name for link in (ROOT / "src" / "headrace").iterdir() if link.is_symlink()}
    assert seen == folders | {"src", "pyproject.toml", "README.md", "LICENSE"}
    assert {PROJECT["readme"], PROJECT["license"]} <= {"README.md", "Apache-2.0"}


def test_both_images_end_as_a_user_that_is_not_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    users = {
        stage.splitlines()[0].rsplit(" ", 1)[1]: re.findall(r"^USER (\S+)$", stage, re.MULTILINE) for stage in stages
    }
    assert (users["slim"], users["cuda"]) == (["10001:10001"], ["10001:10001"])
