"""Folders that live as long as a process, and are swept away by a later one where it was killed."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder(kind: str, root: Path | None = None) -> Iterator[Path]:
    """A folder of this process's own, gone afterwards; those of dead processes are swept away first.

    Args:
        kind: which of the program's uses it is: a process sweeps only its own kind's.
        root: where; default: the system's folder for temporary files.
    """
    root = Path(tempfile.gettempdir()) if root is None else root
    prefix = f"headrace-{kind}-"
    for left in root.glob(f"{prefix}*"):
        owner = re.fullmatch(r"([0-9]{1,9})-[^-]*", left.name.removeprefix(prefix))
        if owner and not _is_alive(int(owner[1])):
            # Another user's, or somebody sweeps it as well: what stays is swept another time.
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    return True
