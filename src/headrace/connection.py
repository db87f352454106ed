"""How a connection to Redis is opened, and what a server must be. Shared by the two brokers."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from headrace.config import Settings
from headrace.errors import BrokerUnavailableError, ConfigurationError, ContractVersionError, OverloadedError
from headrace.redaction import redact
from headrace.request import CONTRACT_VERSION

#: Longest blocking read. Well under the socket's time-out, or a quiet stream would look like a dead server.
MAX_BLOCK_MS = 2_000
_SOCKET_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5.0
_NUM_RETRIES = 3
_MIN_VERSION = (7, 0)


def _options(retry: Retry | AsyncRetry) -> dict[str, Any]:
    # RESP2, because the shapes of RESP3's answers differ between releases of the client.
    return {
        "protocol": 2,
        "socket_timeout": _SOCKET_TIMEOUT_S,
        "socket_connect_timeout": _CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "health_check_interval": 30,
        "retry": retry,
    }


def open_client(settings: Settings) -> redis.Redis:
    """A client with a pool of its own; it connects at its first command.

    Raises:
        ConfigurationError: the URL is not one of Redis.
    """
    options = _options(Retry(ExponentialWithJitterBackoff(cap=1.0, base=0.05), _NUM_RETRIES))
    with _url_is_checked(settings):
        return redis.Redis.from_url(settings.connection_url, **_for_url(settings, options))


def open_async_client(settings: Settings) -> redis.asyncio.Redis:
    """The same for asyncio."""
    options = _options(AsyncRetry(ExponentialWithJitterBackoff(cap=1.0, base=0.05), _NUM_RETRIES))
    with _url_is_checked(settings):
        return redis.asyncio.Redis.from_url(settings.connection_url, **_for_url(settings, options))


class _UntilThereIsRoom(Retry):
    """Also sends again what a server with a full memory has refused, as long as somebody says."""

    def __init__(self, wait: Callable[[OutOfMemoryError], bool]) -> None:
        super().__init__(ExponentialWithJitterBackoff(cap=1.0, base=0.05), _NUM_RETRIES)
        self._wait = wait

    def __deepcopy__(self, memo: object) -> Self:
        return type(self)(self._wait)  # each connection has its own, and all of them the same who waits

    def call_with_retry(self, do: Callable[[], Any], fail: Callable[..., Any], *args: Any, **options: Any) -> Any:
        while True:
            try:
                return super().call_with_retry(do, fail, *args, **options)
            except OutOfMemoryError as error:
                if not self._wait(error):
                    raise
                # Where a key is watched this raises, for what was read of it may have changed.
                fail(error, 1) if options.get("with_failure_count") else fail(error)


def open_patient_client(settings: Settings, wait: Callable[[OutOfMemoryError], bool]) -> redis.Redis:
    """A client as of ``open_client`` that waits where the server's memory is full.

    Args:
        settings: name the server.
        wait: called with each refusal; pauses, and says whether to send the command again.
    """
    with _url_is_checked(settings):
        options = _options(_UntilThereIsRoom(wait))
        return redis.Redis.from_url(settings.connection_url, **_for_url(settings, options))


def _for_url(settings: Settings, options: dict[str, Any]) -> dict[str, Any]:
    if settings.redis_url.startswith("unix:"):
        del options["socket_keepalive"]
    return options


@contextmanager
def _url_is_checked(settings: Settings) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigurationError(f"redis_url {redact(settings.redis_url)!r}: {error}") from error


@contextmanager
def translated(settings: Settings) -> Iterator[None]:
    """Turn redis-py's errors into Headrace's, so that nobody else has to know redis-py.

    Raises:
        BrokerUnavailableError: no connection, or a command that the server refuses.
        ConfigurationError: the server does not let these credentials do it; trying again would not help.
        OverloadedError: the server's memory is full.
    """
    try:
        yield
    except OutOfMemoryError as error:
        raise OverloadedError(f"the server's memory is full: {error}") from error
    except (AuthenticationError, NoPermissionError) as error:
        raise ConfigurationError(f"{redact(settings.redis_url)} refuses these credentials: {error}") from error
    except (ConnectionError, TimeoutError, BusyLoadingError) as error:
        raise BrokerUnavailableError(f"no Redis server answers at {redact(settings.redis_url)}: {error}") from error
    except RedisError as error:
        raise BrokerUnavailableError(f"{redact(settings.redis_url)} refuses a command: {error}") from error


@contextmanager
def translated_async(settings: Settings) -> Iterator[None]:
    """The same around asynchronous commands; also raises the task's cancellation where a command swallows it.

    redis-py sends through ``asyncio.wait_for``, which before Python 3.12 returns as if nothing had happened when its
    task is cancelled in the very moment in which the sending ends. The task would then never end.
    """
    task = asyncio.current_task()
    num_before = task.cancelling() if task else 0
    try:
        with translated(settings):
            yield
    finally:
        if task and task.cancelling() > num_before:
            raise asyncio.CancelledError


def is_of_wrong_type(error: Exception) -> bool:
    """Whether a command met a key of another type than it is for."""
    return isinstance(error, ResponseError) and str(error).startswith("WRONGTYPE")


def now_ms(client: Any, settings: Settings) -> int:
    """The server's clock; raises as ``translated`` does."""
    with translated(settings):
        seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def check_server(info: Mapping[str, object]) -> None:
    """See that a server can keep the contract's promises; ``info`` is what INFO says.

    Raises:
        BrokerUnavailableError: it is too old.
        ConfigurationError: it would throw requests away when its memory is full.
    """
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < _MIN_VERSION:
        raise BrokerUnavailableError(f"Redis {version} is too old: 7.0 or Valkey 8 and up are needed")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if int(str(info.get("maxmemory", 0))) > 0 and policy != "noeviction":
        raise ConfigurationError(f"maxmemory-policy is {policy}: requests would be evicted; set it to noeviction")


def check_contract(lowest: bytes | None, highest: bytes | None, queue: str) -> None:
    """See that this program speaks the version under which a queue is served.

    Raises:
        ContractVersionError: it does not.
    """
    if lowest is None or highest is None:
        return
    if not (lowest.isdigit() and highest.isdigit() and len(lowest + highest) < 16):
        raise ContractVersionError(
            f"queue {queue}: its key `contract` holds no versions, but {lowest!r} and {highest!r}"
        )
    if not int(lowest) <= CONTRACT_VERSION <= int(highest):
        raise ContractVersionError(
            f"queue {queue} is served under versions {int(lowest)} to {int(highest)} of the contract, "
            f"this program speaks {CONTRACT_VERSION}: upgrade the older one"
        )
