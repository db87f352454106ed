"""What a program leaves behind: processes, found by a variable of their environment, and temporary files."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Set for everything that a test starts, to a folder that is the test's own.
MARK = "TEST_MARK"


def user_environ() -> dict[str, str]:
    """This process's environment without settings, but for the cache that holds the model; no time for measuring."""
    kept = ("HEADRACE_CACHE_DIR",)
    found = {name: value for name, value in os.environ.items() if name in kept or not name.startswith("HEADRACE_")}
    return found | {"HEADRACE_MEASURE_MS": "0"}


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder for TMPDIR; short, because a socket's path has at most 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="hr-", dir="/tmp" if Path("/tmp").is_dir() else None) as folder:
        yield Path(folder)


def processes_with(mark: Path) -> list[int]:
    """Processes that were started with this mark or work in this folder, zombies left out.

    In the folder, because a server that writes its own title into the process list overwrites its environment.
    """
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            works_there = str((folder / "cwd").readlink()).startswith(str(mark))
            if works_there or wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended, or is somebody else's
    return found
