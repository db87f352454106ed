"""What the two clients take, and its defaults. Pure."""

from headrace.config import Settings
from headrace.errors import ConfigurationError
from headrace.keys import RequestStream

#: Seconds for a whole result.
TIMEOUT_S = 600.0
#: Seconds for which a submission or a cancellation waits for a server that is away.
SUBMIT_TIMEOUT_S = 10.0
#: Seconds for which a request that this client did not submit may be unknown: it may wait in its stream to be admitted.
ATTACH_WAIT_S = 5.0


def settings_of(settings: Settings | None, url: str | None, queue: str | None) -> Settings:
    """The settings that a client was given, in one form or the other.

    Raises:
        ConfigurationError: in both, or they are wrong.
    """
    if settings is None:
        return Settings.load(redis_url=url, queue=queue)
    if url is not None or queue is not None:
        raise ConfigurationError("give settings, or url and queue, not both")
    return settings


def stream_of(request_id: str) -> RequestStream:
    """A stream by which the owner of an id may withdraw it: any lane of the tenant whose name the id begins with."""
    tenant, colon, _ = request_id.partition(":")
    return RequestStream("normal", tenant if colon else "")
