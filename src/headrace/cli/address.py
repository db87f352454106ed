"""A server's URL as it may be shown: without the password, in whichever of its places that stands."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from headrace.redaction import is_secret


@dataclass(frozen=True, slots=True)
class Address:
    """What a URL says, its secrets apart.

    Attributes:
        url: without user and password, be they in front of the host or in the query.
        user: in whose name; "" for the server's default user.
        has_password: the URL carried one.
    """

    url: str
    user: str
    has_password: bool

    @classmethod
    def of(cls, url: str) -> Self:
        """Take a URL apart."""
        # By hand, because urlunsplit drops the empty host of unix:///path.
        head, _, query = url.partition("?")
        parts = urlsplit(head)
        userinfo, at, host = parts.netloc.rpartition("@")
        if at:
            head = head.replace(f"//{userinfo}@{host}", f"//{host}", 1)
        options = parse_qsl(query, keep_blank_values=True)
        shown = [(name, value) for name, value in options if name != "username" and not is_secret(name)]
        user = dict(options).get("username", unquote(parts.username or ""))
        return cls(
            f"{head}?{urlencode(shown)}" if shown else head,
            user,
            bool(parts.password) or any(is_secret(name) for name, _ in options),
        )

    def redis_cli(self) -> list[str]:
        """The words of a redis-cli that reaches this server, given the password in REDISCLI_AUTH where one is needed.

        It knows nothing of a query, and would take a name alone in front of the host for a password.
        """
        head, _, query = self.url.partition("?")
        database = dict(parse_qsl(query)).get("db")
        socket = head.removeprefix("unix://")
        words = ["redis-cli", "-u", head] if socket == head else ["redis-cli", "-s", unquote(socket)]
        words += ["-n", database] if database else []
        return words + (["--user", self.user] if self.user else [])
