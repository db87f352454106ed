"""Secrets of a server's URL, wherever they stand, are not shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.address import Address
from headrace.redaction import redact


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:7000/0", "redis://host:7000/0"),
        ("redis://:hidden@host:7000/0", "redis://:***@host:7000/0"),
        ("redis://me:hidden@host/0?db=1", "redis://me:***@host/0?db=1"),
        ("redis://host/0?password=hidden", "redis://host/0?password=***"),
        (
            "rediss://host/0?ssl_password=hidden&ssl_keyfile=key.pem",
            "rediss://host/0?ssl_password=***&ssl_keyfile=key.pem",
        ),
        ("redis://host/0?db=1&sentinel_password=hidden", "redis://host/0?db=1&sentinel_password=***"),
        ("redis://me:hidden@host/0?PASSWORD=hidden&client_name=x", "redis://me:***@host/0?PASSWORD=***&client_name=x"),
        ("redis://host/0?p%61ssword=hidden", "redis://host/0?p%61ssword=***"),
        ("redis://host/0?password=hidden#hidden", "redis://host/0?password=***"),
        ("unix:///r.sock?password=hidden", "unix:///r.sock?password=***"),
        ("unix://me:hidden@/r.sock", "unix://me:***@/r.sock"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert redact(url) == shown
    assert "hidden" not in Address.of(url).url
    assert Address.of(url).has_password is (url != shown)


@given(st.text(st.sampled_from("abcXYZ0189%+._-~!"), min_size=9), st.sampled_from(["password", "ssl_password"]))
def test_no_password_survives_whatever_its_characters(password: str, name: str) -> None:
    shown = redact(f"rediss://me@host/0?db=0&{name}={password}&timeout=1")
    assert shown == f"rediss://me@host/0?db=0&{name}=***&timeout=1"
