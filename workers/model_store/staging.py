"""Making a folder so that it is either complete or absent, whoever is killed and whoever else makes it too.

The work happens in a temporary folder beside the final one, under a file lock, and ends in one rename. The kernel
drops the lock when its holder dies, so no lock outlives a killed process; what such a process left behind is removed
by the next one that holds the lock.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal

from headrace.errors import ModelError


def lock_path(final: Path) -> Path:
    """Return the file that is locked while ``final`` is made."""
    return final.parent / f".{final.name}.lock"


def is_locked(final: Path) -> bool:
    """Tell whether another process is making ``final`` at this moment."""
    try:
        descriptor = os.open(lock_path(final), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def locked(final: Path) -> Iterator[None]:
    """Hold the lock of ``final``; waits while another process holds it."""
    final.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock_path(final), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """Give an empty folder that becomes ``final`` when the block ends without an error; hold its lock around this.

    Raises:
        ModelError: the disk is full.
    """
    prefix = f".{final.name}.part-"
    for leftover in final.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    try:
        yield staging
        # mkdtemp makes the folder private; a model belongs to whoever may read the cache.
        staging.chmod(0o777 & ~_umask())
        # Without this a power cut after the rename could leave a complete-looking folder of empty files.
        for path in (*staging.rglob("*"), staging):
            _fsync(path)
        staging.rename(final)
        _fsync(final.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to start what cannot fit.

    Raises:
        ModelError: the file system of ``folder`` has fewer than ``needed_bytes`` bytes free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise ModelError(
            f"not enough disk space in {folder}: {decimal(needed_bytes)} needed, {decimal(free_bytes)} free; "
            "make room, or set HEADRACE_CACHE_DIR to a folder on a larger disk"
        )


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
