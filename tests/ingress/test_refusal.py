"""Refusals: what clients of each protocol are told of each error, and what the access log says."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Run
from support import client as tcp_client
from tabi import Server, Session
from tabi.config import make_config
from tabi.errors import (
    AuthError,
    ConfigError,
    DialError,
    EgressError,
    HttpError,
    LimitExceeded,
    PolicyDenied,
    ProxyError,
    RemoteProtocolError,
    TabiError,
)
from tabi.ingress.refusal import CHALLENGE, DETAILS, TABLE, Refusal, login_failed, login_refused, refusal_of
from tabi.net.failures import connect_error, local_error, no_port_error, resolve_error, timeout_error
from tabi.relay.exchange import ExchangeFailed
from tabi.session import Close
from tabi.wire.address import Address
from tabi.wire.socks4 import reply4_code


@pytest.mark.parametrize(
    ("exc", "reply_code", "status", "error", "close"),
    [
        (LimitExceeded("x", "connections"), 2, 429, "connection_limit_reached", "limit"),
        (PolicyDenied("x"), 2, 403, "destination_ip_prohibited", "denied"),
        (connect_error(errno.EACCES, "x"), 2, 403, "destination_ip_prohibited", "denied"),
        (ProxyError("x", 2), 2, 403, "destination_ip_prohibited", "denied"),
        (timeout_error(1.0, "x"), 4, 504, "connection_timeout", "error"),
        (connect_error(errno.ETIMEDOUT, "x"), 4, 504, "connection_timeout", "error"),
        (connect_error(errno.ECONNRESET, "x"), 5, 502, "connection_terminated", "error"),
        (connect_error(errno.ENOTCONN, "x"), 1, 502, "connection_terminated", "error"),
        (connect_error(errno.ECONNREFUSED, "x"), 5, 502, "connection_refused", "error"),
        (ProxyError("x", 5), 5, 502, "connection_refused", "error"),
        (connect_error(errno.ENETUNREACH, "x"), 3, 502, "destination_ip_unroutable", "error"),
        (connect_error(errno.ENETDOWN, "x"), 3, 502, "destination_ip_unroutable", "error"),
        (connect_error(errno.EHOSTUNREACH, "x"), 4, 502, "destination_ip_unroutable", "error"),
        (connect_error(errno.EHOSTDOWN, "x"), 4, 502, "destination_ip_unroutable", "error"),
        (no_port_error("x", "127.0.0.1"), 1, 500, "proxy_internal_error", "error"),
        (connect_error(errno.EADDRNOTAVAIL, "x"), 3, 502, "destination_ip_unroutable", "error"),
        (connect_error(errno.EAFNOSUPPORT, "x"), 8, 502, "destination_ip_unroutable", "error"),
        (ProxyError("x", 4), 4, 502, "destination_unavailable", "error"),
        (ProxyError("x"), 1, 502, "destination_unavailable", "error"),
        (AuthError("x"), 1, 502, "destination_unavailable", "error"),
        (RemoteProtocolError("x"), 1, 502, "destination_unavailable", "error"),
        (RemoteProtocolError("x", 7), 7, 502, "destination_unavailable", "error"),
        (EgressError("x", 1), 1, 502, "destination_unavailable", "error"),
        (DialError("x", 7), 7, 502, "destination_unavailable", "error"),
        (DialError("x", 8), 8, 502, "destination_unavailable", "error"),
        (DialError("x", 1, errno.EIO), 1, 500, "proxy_internal_error", "error"),
        (resolve_error("x", "x"), 4, 502, "dns_error", "error"),
        (resolve_error("x", "x", 1), 1, 502, "dns_error", "error"),
        (local_error(OSError(errno.EMFILE, "x"), "x"), 1, 500, "proxy_internal_error", "error"),
        (ConfigError("x"), 1, 500, "proxy_internal_error", "error"),
        (HttpError("x"), 1, 400, "http_request_error", "error"),
        (ExchangeFailed(504, "http_response_timeout", "x"), 1, 504, "http_response_timeout", "error"),
        (ExchangeFailed(429, "connection_limit_reached", "x"), 1, 429, "connection_limit_reached", "limit"),
        (HttpError("x", 431), 1, 431, "http_request_error", "error"),
        (PolicyDenied("x", reply_code=1), 1, 500, "proxy_internal_error", "denied"),
        (PolicyDenied("x", reply_code=3), 3, 502, "destination_ip_unroutable", "denied"),
        (PolicyDenied("x", reply_code=4), 4, 502, "destination_ip_unroutable", "denied"),
        (PolicyDenied("x", reply_code=5), 5, 502, "connection_refused", "denied"),
        (PolicyDenied("x", reply_code=6), 6, 504, "connection_timeout", "denied"),
        (PolicyDenied("x", reply_code=7), 7, 403, "destination_ip_prohibited", "denied"),
    ],
)
def test_what_clients_are_told(exc: TabiError, reply_code: int, status: int, error: str, close: Close) -> None:
    """The reply of SOCKS, HTTP's status with its error type, and the end of the session come of one error."""
    refusal = refusal_of(exc)
    assert refusal == Refusal(str(exc), reply_code, status, error, close=close)
    assert reply4_code(refusal.reply_code) == 91


def test_a_code_that_is_not_one() -> None:
    """Another proxy may send any number; our client gets one that it knows."""
    for number in (9, 91, 255):
        assert refusal_of(ProxyError("x", number)).reply_code == 1
    assert refusal_of(DialError("x", 6, errno.EMFILE)).reply_code == 6


@pytest.mark.parametrize("action", ["deny", "reset", "drop"])
def test_how_a_rule_refuses(action: str) -> None:
    """A rule may want no answer at all; the access log says the same."""
    refusal = refusal_of(PolicyDenied("rule x", action))
    assert (refusal.action, refusal.text, refusal.close) == (action, "rule x", "denied")


def test_a_client_that_is_nobody() -> None:
    """It is asked for a user name and a password, in each protocol's way."""
    refusal = login_refused("wrong")
    assert (refusal.text, refusal.close, refusal.action) == ("wrong", "denied", "deny")
    assert (refusal.reply_code, refusal.login_status, refusal.status, refusal.error) == (2, 1, 407, None)
    assert refusal.fields == CHALLENGE


INNER = "127.66.77.88"
"""An address that the client has not named."""

KINDS: list[Callable[[str], TabiError]] = [
    lambda text: LimitExceeded(text, "connections"),
    PolicyDenied,
    *(lambda text, code=code: PolicyDenied(text, reply_code=code) for code in range(1, 9)),
    lambda text: connect_error(errno.ECONNREFUSED, text),
    *(lambda text, number=number: connect_error(number, text) for number in errno.errorcode),
    *(lambda text, code=code: resolve_error(text, text, code) for code in (1, 4)),
    *(lambda text, code=code: ProxyError(text, code) for code in (None, *range(1, 10))),
    lambda text: timeout_error(1.0, text),
    lambda text: local_error(OSError(errno.EMFILE, text), text),
    lambda text: DialError(text, 1),
    AuthError,
    ConfigError,
    RemoteProtocolError,
    TabiError,
    lambda text: ExchangeFailed(502, "http_protocol_error", text),
    lambda text: ExchangeFailed(502, "connection_terminated", text),
    lambda text: ExchangeFailed(504, "http_response_timeout", text),
    lambda text: ExchangeFailed(429, "connection_limit_reached", text),
]


@given(st.sampled_from(KINDS), st.one_of(st.ip_addresses().map(str), st.just("proxy.inner.test"), st.just("alice")))
def test_answers_name_nothing_that_the_client_has_not(kind: Callable[[str], TabiError], secret: str) -> None:
    """Whatever the error says of addresses, names, users and proxies, the answer of HTTP is made of other words."""
    destination = Address("example.com", 443)
    refusal = refusal_of(kind(f"{secret} failed at {secret}"))
    for details in (refusal.details(), refusal.details(destination)):
        assert secret not in details.replace("example.com:443", "")
        assert details.isprintable()
        assert details
    for login in (login_refused(secret), login_failed(secret)):
        assert secret not in login.details(destination)


def test_a_reason_about_the_request_itself_is_told() -> None:
    """What the client has written wrong, it reads; so does it what its own destination did."""
    assert refusal_of(HttpError("no Host field")).details(Address("x", 1)) == "no Host field"
    assert refusal_of(ExchangeFailed(408, "http_request_error", "no more")).details() == "no more"
    assert Refusal("log", 1, 501, says="told").details() == "told"
    refused = refusal_of(connect_error(errno.ECONNREFUSED, INNER))
    assert refused.details(Address("example.com", 443)) == "example.com:443: connection refused"
    assert refused.text == f"{INNER}: connection refused"
    assert Refusal(INNER, 1, 418).details() == "i'm a teapot"


def test_every_error_type_has_its_text() -> None:
    """None falls back on the words of the status."""
    assert {row.error for row in TABLE} <= set(DETAILS)


GUARDED = {"guard": {"exempt": []}, "log": {"access": "none"}, "resolver": {"hosts": {"inner.test": [INNER]}}}
UNREACHABLE = f"socks5://user:secret@{INNER}:1"
WAYS: list[tuple[dict[str, Any], str]] = [
    ({}, "inner.test:80"),
    ({"rule": [{"name": INNER, "action": "deny", "hosts": ["*"]}]}, "inner.test:80"),
    ({"rule": [{"via": "block", "hosts": ["*"]}]}, "inner.test:80"),
    ({"rule": [{"via": INNER, "hosts": ["*"]}], "egress": {INNER: {"members": [UNREACHABLE]}}}, "example.com:80"),
    ({"rule": [{"via": "x"}], "egress": {"x": {"url": UNREACHABLE}}}, "example.com:80"),
    ({"egress": {"direct": {"source": ["192.0.2.77"]}}, "guard": {"deny": []}}, "127.0.0.1:80"),
    ({"resolver": {"servers": ["udp://127.0.0.9:9"], "timeout": 0.05, "tries": 1}}, "example.com:80"),
]


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
@pytest.mark.parametrize(("settings", "host"), WAYS)
def test_what_an_outsider_reads(run: Run, settings: dict[str, Any], host: str, method: str) -> None:
    """The guard, rules, limits, other proxies, sources and name servers: all of it stays in the log."""

    async def main() -> None:
        listen = {"listen": [{"url": "http://127.0.0.1:0"}], "timeouts": {"connect": 0.2}}
        ended: asyncio.Queue[Session] = asyncio.Queue()
        config = make_config({**GUARDED, **listen, **settings})
        async with (
            Server(config=config, on_close=ended.put_nowait) as server,
            tcp_client(server.addresses[0]) as (reader, writer),
        ):
            target = f"http://{host}/" if method == "GET" else host
            writer.write(f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            answer = head + (await reader.readuntil(b"\n")).decode()
            writer.close()
            assert int(answer.split()[1]) >= 400, answer
            for secret in (INNER, "192.0.2.77", "127.0.0.9", "user", "secret"):
                assert secret not in answer.replace(host, "")
            assert (await ended.get()).error

    run(main)
