"""Whether a session would be looked into, as `tabi explain` tells it."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tabi.config import make_config
from tabi.config.compile import make_intercepts
from tabi.server.explain_intercept import Interception, explain_interception, lines_of
from tabi.session import Session
from tabi.wire.address import Address, parse_host

ENTRIES: list[dict[str, Any]] = [
    {"action": "pass", "hosts": ["*.bank.example"]},
    {"name": "web", "hosts": ["*.example.com", "10.0.0.0/8"], "verify": False, "scripts": ["/a.py", "/b.py"]},
]


def explained(
    host: str,
    sni: str | None = None,
    command: str = "connect",
    address: str | None = None,
    via: str | None = None,
) -> Interception | None:
    """The answer for a session."""
    intercepts = make_intercepts(make_config({"intercept": ENTRIES}), clock=lambda: 0.0)
    assert intercepts is not None
    session = Session(0, "mixed://127.0.0.1:1080", Address(parse_host("192.0.2.9"), 1), 0.0)
    session.command, session.protocol, session.via = command, "socks5", via
    session.destination = Address(parse_host(host), 443)
    return explain_interception(intercepts, session, [] if address is None else [ip_address(address)], sni)


def test_the_entry_that_decides_and_what_it_says() -> None:
    """Each entry up to it, what a hello would change, and its settings."""
    found = explained("www.example.com")
    assert found is not None
    assert (found.action, found.by) == ("intercept", "web")
    assert list(lines_of(found)) == [
        "intercept[0]  no              hosts: www.example.com is not one of *.bank.example",
        "web           yes, intercept  hosts *.example.com, 10.0.0.0/8 (www.example.com)",
        (
            "tls true, verify false, on_pinning refuse, on_invalid mirror, on_error pass, mismatch log, quic pass, "
            "scripts /a.py /b.py"
        ),
    ]
    assert msgspec.to_builtins(found)["settings"]["verify"] is False


@pytest.mark.parametrize(
    ("asked", "action", "by", "hello"),
    [
        ({"host": "x.bank.example"}, "pass", "intercept[0]", 2),
        ({"host": "x.bank.example", "sni": "www.example.com"}, "intercept", "web", 0),
        ({"host": "192.0.2.1"}, "none", None, 2),
        ({"host": "192.0.2.1", "sni": "other.test"}, "none", None, 0),
        ({"host": "192.0.2.1", "sni": "www.example.com"}, "intercept", "web", 0),
        ({"host": "inner.test", "address": "10.1.2.3"}, "intercept", "web", 0),
        ({"host": "inner.test", "address": "10.1.2.3", "via": "proxy"}, "none", None, 1),
        ({"host": "other.test", "command": "forward"}, "none", None, 0),
        ({"host": "192.0.2.1", "command": "associate"}, "none", None, 2),
    ],
)
def test_answers(asked: dict[str, Any], action: str, by: str | None, hello: int) -> None:
    """By names and addresses as the server has them; a forwarded request has no hello."""
    found = explained(**asked)
    assert found is not None
    assert (found.action, found.by, len(found.hello)) == (action, by, hello)
    lines = list(lines_of(found))
    assert ("none matches: it is passed on as it is" in lines) == (action == "none")
    assert (found.settings == {}) == (action != "intercept")


@pytest.mark.parametrize("command", ["bind", "resolve", "resolve_ptr"])
def test_other_commands_have_nothing_to_look_into(command: str) -> None:
    """There is no answer then."""
    assert explained("www.example.com", command=command) is None
