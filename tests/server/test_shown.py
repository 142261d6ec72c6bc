"""The configuration as it is used: defaults filled in, no secret in it."""

from __future__ import annotations

import json

import msgspec
import pytest

from tabi.config import parse_config
from tabi.server.shown import faults_of, hide_passwords, resolved, without_none

SECRETS = """
[users.alice]
password = "top-secret-1"
plain = true
[admin]
token = "top-secret-2-xxxxxxx"
read_token = "top-secret-3-xxxxxxx"
[egress.a]
url = "socks5://bob:top-secret-4@192.0.2.1:1"
[egress.b]
chain = ["http://bob:top-secret-5@192.0.2.1:1", "socks5://192.0.2.2:1"]
[egress.c]
members = [{to = "socks5://bob:top-secret-6@192.0.2.1:1"}, "socks5://bob:top-secret-7@192.0.2.2:1"]
[[distort]]
map_remote = "http://bob:top-secret-8@192.0.2.1/"
headers = {set = {Authorization = "top-secret-9", X-Plain = "shown"}}
"""


def test_no_secret_is_in_it() -> None:
    """Wherever a configuration may have one; what is none stays."""
    text = json.dumps(resolved(parse_config(SECRETS)))
    assert "top-secret" not in text
    assert "shown" in text
    assert "192.0.2.2" in text


def test_defaults_are_filled_in() -> None:
    """Those that depend on others, and names that nobody gave."""
    found = resolved(parse_config('[[rule]]\naction = "deny"\n[[intercept]]\n[limits]\nbandwidth = "10 MB/s"\n'))
    assert found["rule"][0]["name"] == "rule[0]"
    assert found["intercept"][0]["name"] == "intercept[0]"
    assert found["limits"]["burst"] > 0
    assert found["limits"]["per_client"]
    assert found["listen"][0]["users"] == "none"
    assert found["admin"]["token"] is None


def test_it_is_json() -> None:
    """Of nothing but JSON's own types."""
    assert msgspec.json.decode(msgspec.json.encode(resolved(parse_config(SECRETS))))["admin"]["token"] == "…"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("socks5://a:b@c:1", "socks5://…@c:1"),
        ("socks5://a:b@x@c:1", "socks5://…@c:1"),
        ("direct", "direct"),
        (None, None),
    ],
)
def test_urls_lose_who_logs_in(url: str | None, shown: str | None) -> None:
    """All of it, also where a password has a sign of URLs in it."""
    egress = {"url": url, "chain": None, "members": None}
    hide_passwords(egress)
    assert egress["url"] == shown


def test_what_a_fault_does_not_say_is_left_out() -> None:
    """All of its keys without a value mean that this does not go wrong."""
    assert without_none({"a": None, "b": {"c": None, "d": 1}, "e": [None]}) == {"b": {"d": 1}, "e": [None]}
    data = {"distort": [{"fault": {"x": 1}}, {"fault": "3g"}], "profile": {"p": {}}}
    assert [key for _, key in faults_of(data)] == ["fault", "p"]
