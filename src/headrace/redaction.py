"""Server URLs fit for a log: their secrets left out, be they in front of the host or in the query. Pure."""

import re
from urllib.parse import unquote_plus, urlsplit, urlunsplit

#: What names of secrets have in common: ``password``, ``ssl_password``, ``sentinel_password`` and the like.
_SECRET = re.compile(r"pass|secret|token", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether an option of a URL's query holds a secret; rather one too many."""
    return _SECRET.search(unquote_plus(name)) is not None


def redact(url: str) -> str:
    """The URL with ``***`` for each secret."""
    head, mark, query = url.partition("?")
    options = [option.partition("=") for option in query.split("&")]
    shown = "&".join(f"{name}{sign}{'***' if is_secret(name) else value}" for name, sign, value in options)
    parts = urlsplit(head)
    if parts.password:
        host = parts.netloc.rpartition("@")[2]
        head = urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
    return f"{head}{mark}{shown}"
