"""docker-compose.yml as compose understands it, and its services as processes of this machine.

No container engine is needed: what an image adds is a user, a file system and a network. The programs, their arguments
and their environment are the file's; only addresses and folders are those of a test.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from headrace.testing.servers import program

ROOT = Path(__file__).resolve().parents[2]
_STOP_TIMEOUT_S = 60.0


def resolved(**variables: str) -> dict[str, Any]:
    """What compose makes of the file and of .env.example, all profiles included."""
    command = ["docker-compose", "--env-file", ".env.example", "--profile", "gpu", "config"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    done = subprocess.run(command, cwd=ROOT, env=environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return services


def seconds(duration: str) -> float:
    """A duration as compose writes it: ``1m0s``, ``90s``."""
    parts = re.findall(r"([\d.]+)([hms])", duration)
    return sum(float(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


class Stack:
    """The services as processes; use it in a ``with``."""

    def __init__(self, services: Mapping[str, Any], folder: Path, cache_dir: Path, port: int) -> None:
        self.services = services
        self.port = port
        self._folder = folder
        self._data = folder / "data"
        self._data.mkdir()
        self._cache_dir = cache_dir
        self._path = self._programs()
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def _programs(self) -> str:
        """A PATH on which the images' programs are found under their names."""
        bin_dir = self._folder / "bin"
        bin_dir.mkdir()
        (bin_dir / "valkey-server").symlink_to(program("valkey"))
        (bin_dir / "valkey-cli").symlink_to(Path(program("redis")).with_name("redis-cli"))
        headrace = bin_dir / "headrace"
        headrace.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m headrace "$@"\n')
        headrace.chmod(0o755)
        return f"{bin_dir}:{os.environ['PATH']}"

    def _local(self, word: str) -> str:
        """A word of the file with the containers' addresses and folders turned into this test's."""
        replaced = {
            "redis://broker:6379/0": f"redis://127.0.0.1:{self.port}/0",
            "6379": str(self.port),
            "/data": str(self._data),
            "/models": str(self._cache_dir),
        }
        return replaced.get(word, word)

    def _environ(self, name: str) -> dict[str, str]:
        given = {key: self._local(value) for key, value in self.services[name].get("environment", {}).items()}
        kept = {key: os.environ[key] for key in ("PYTHONPATH", "OMP_NUM_THREADS") if key in os.environ}
        return kept | given | {"PATH": self._path, "HOME": str(self._folder), "PYTHONSAFEPATH": "1"}

    def command(self, name: str) -> list[str]:
        """A service's command line."""
        return [self._local(word) for word in self.services[name]["command"]]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start a service; what it says is in ``log``."""
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.command(name), env=self._environ(name), cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._started[name] = process
        return process

    def log(self, name: str) -> str:
        """What a service has said."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def run(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """``docker compose exec``: a command beside a service's process."""
        return subprocess.run(
            command, env=self._environ(name), cwd=self._folder, capture_output=True, text=True, timeout=60, check=False
        )

    def is_healthy(self, name: str) -> bool:
        """What the service's health check says."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(name, *(self._local(word) for word in command)).returncode == 0

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a service's process."""
        self._started[name].send_signal(number)

    def stop(self, name: str) -> int:
        """``docker compose stop``: SIGTERM, and the file's time to end in."""
        process = self._started.pop(name)
        process.terminate()
        return process.wait(seconds(self.services[name]["stop_grace_period"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._started.values()):
            process.terminate()
        for process in self._started.values():
            try:
                process.wait(_STOP_TIMEOUT_S)
            finally:
                process.kill()
