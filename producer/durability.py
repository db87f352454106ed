"""Whether a server writes to its disk before it answers. Pure.

WAITAOF would tell it of a single write, but is not to be trusted: under ``appendfsync everysec`` a server was seen to
acknowledge 259 writes with 3 syncs, and after a command that wrote nothing it returns at once. What holds is the
server's own policy: with ``appendfsync always`` it syncs before it sends the reply.
"""

from collections.abc import Mapping

from headrace.errors import ConfigurationError

#: What CONFIG GET must say; the last one, where it is on, suspends the syncs while the file is rewritten.
FSYNC_SETTINGS: Mapping[str, str] = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}


def check_fsync(found: Mapping[str, str]) -> None:
    """See that a server with these settings syncs every write.

    Raises:
        ConfigurationError: it does not; the message says what to set.
    """
    wrong = {name: value for name, value in FSYNC_SETTINGS.items() if found.get(name) != value}
    if wrong:
        is_now = ", ".join(f"{name} is {found.get(name) or 'not there'}" for name in wrong)
        to_set = ", ".join(f"{name} {value}" for name, value in wrong.items())
        raise ConfigurationError(f'durability "fsync" is not what this server gives ({is_now}): set {to_set}')


def cannot_check(error: ConfigurationError) -> ConfigurationError:
    """What to raise where the server does not tell its settings."""
    return ConfigurationError(
        f'durability "fsync" cannot be checked: permit this user CONFIG GET (+config|get), or ask for "memory": {error}'
    )
