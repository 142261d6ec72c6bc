"""Refusals: what clients of each protocol are told of each error, and what the access log says."""

from __future__ import annotations

import errno

import pytest

from tabi.errors import (
    AuthError,
    ConfigError,
    DialError,
    HttpError,
    LimitExceeded,
    PolicyDenied,
    ProxyError,
    RemoteProtocolError,
    TabiError,
)
from tabi.ingress.refusal import CHALLENGE, Refusal, login_refused, refusal_of
from tabi.net.failures import connect_error, local_error, resolve_error, timeout_error
from tabi.relay.exchange import ExchangeFailed
from tabi.session import Close
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
        (connect_error(errno.EADDRNOTAVAIL, "x"), 3, 502, "destination_ip_unroutable", "error"),
        (connect_error(errno.EAFNOSUPPORT, "x"), 8, 502, "destination_ip_unroutable", "error"),
        (ProxyError("x", 4), 4, 502, "destination_unavailable", "error"),
        (ProxyError("x"), 1, 502, "destination_unavailable", "error"),
        (AuthError("x"), 1, 502, "destination_unavailable", "error"),
        (RemoteProtocolError("x"), 1, 502, "destination_unavailable", "error"),
        (RemoteProtocolError("x", 7), 7, 502, "destination_unavailable", "error"),
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
