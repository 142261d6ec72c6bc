"""What a refused client is told: made once from an error, encoded by each protocol.

SOCKS5 sends the reply code of RFC 1928 section 6 that the error has (`net/failures.py` chose it), SOCKS4 the one that
comes nearest (`wire.socks4.reply4_code`), HTTP the status and the error type of RFC 9209 section 2.3 that `TABLE` says.

An error names inner addresses, networks, users, proxies and name servers. All of that is for the access log: the text
that people read in HTTP's answer is one of `DETAILS`, unless it is about what the client itself has written.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

from tabi.errors import (
    AuthError,
    DialError,
    EgressError,
    HttpError,
    LimitExceeded,
    PolicyDenied,
    ProxyError,
    RemoteProtocolError,
    TabiError,
)
from tabi.relay.exchange import ExchangeFailed
from tabi.session import Close
from tabi.wire.address import Address
from tabi.wire.http import Field
from tabi.wire.socks5 import ReplyCode

REPLIES = frozenset(int(code) for code in ReplyCode)

CLOSE: dict[int, Close] = {403: "denied", 429: "limit"}
"""How a session has ended that was refused with a status; ``error`` for any other."""

CHALLENGE: tuple[Field, ...] = ((b"Proxy-Authenticate", b'Basic realm="tabi", charset="UTF-8"'),)


class Refusal(NamedTuple):
    """Why a client does not get what it asked for, in the words of every protocol.

    Attributes:
        text: for the access log.
        reply_code: of RFC 1928 section 6.
        status: of HTTP.
        error: the error type of Proxy-Status, None if no type fits.
        action: ``deny`` answers, ``reset`` resets the client's connection, ``drop`` says nothing.
        fields: more fields of HTTP's answer.
        login_status: the STATUS of RFC 1929 if the user name and the password are refused.
        close: how the session has ended, for the access log.
        says: for people who read the answer of HTTP; None for a text that fits the status. See `details`.
    """

    text: str
    reply_code: int
    status: int
    error: str | None = None
    action: str = "deny"
    fields: Sequence[Field] = ()
    login_status: int = 1
    close: Close = "error"
    says: str | None = None

    def details(self, destination: Address | None = None) -> str:
        """What people read in the answer of HTTP; ``destination`` is what the client has asked for."""
        if self.says is not None:
            return self.says
        if self.error == REQUEST_ERROR:
            return self.text
        text = DETAILS.get(self.error or self.status) or HTTPStatus(self.status).phrase.lower()
        return f"{destination}: {text}" if destination is not None and self.error in OF_THE_DESTINATION else text


class Row(NamedTuple):
    """A row of the table: what HTTP says of errors of these kinds, all of them or those of one code or number."""

    status: int
    error: str
    kinds: tuple[type[TabiError], ...] = (TabiError,)
    reply_code: int | None = None
    errnos: tuple[int | None, ...] = ()

    def has(self, exc: TabiError) -> bool:
        """Whether an error belongs to this row."""
        if not isinstance(exc, self.kinds) or self.reply_code not in (None, exc.reply_code):
            return False
        return not self.errnos or (isinstance(exc, DialError) and exc.errno in self.errnos)


REQUEST_ERROR = "http_request_error"
"""The error type of what a client itself has written."""

OF_THE_DESTINATION: dict[str | int | None, str] = {
    "destination_ip_prohibited": "may not be reached through this proxy",
    "destination_ip_unroutable": "there is no way to it",
    "destination_unavailable": "another proxy on the way does not reach it",
    "dns_error": "the name has no address, or it was not found out",
    "connection_refused": "connection refused",
    "connection_terminated": "the connection ended before the answer",
    "connection_timeout": "no connection in time",
    "http_protocol_error": "what came is not an answer of HTTP, or could be read in two ways",
    "http_response_timeout": "no answer in time",
    "tls_certificate_error": "its certificate is not accepted: its authority, its name or its time is wrong",
    "tls_alert_received": "it has refused the TLS handshake",
    "tls_protocol_error": "it does not speak TLS as this proxy does",
}
DETAILS: dict[str | int | None, str] = {
    **OF_THE_DESTINATION,
    "connection_limit_reached": "a limit is reached",
    "proxy_internal_error": "the proxy has failed",
    407: "this proxy wants a user name and a password that are right",
    503: "the proxy has failed to find out who the client is",
}
"""What HTTP's answer says to people, by error type, or by status where there is none."""

UNROUTABLE = (
    *(errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EHOSTDOWN),
    *(errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT),
)

TABLE = (
    Row(429, "connection_limit_reached", (LimitExceeded,)),
    # The replies with which a program of `decide` refuses.
    Row(500, "proxy_internal_error", (PolicyDenied,), ReplyCode.GENERAL_FAILURE),
    Row(502, "destination_ip_unroutable", (PolicyDenied,), ReplyCode.NETWORK_UNREACHABLE),
    Row(502, "destination_ip_unroutable", (PolicyDenied,), ReplyCode.HOST_UNREACHABLE),
    Row(502, "connection_refused", (PolicyDenied,), ReplyCode.CONNECTION_REFUSED),
    Row(504, "connection_timeout", (PolicyDenied,), ReplyCode.TTL_EXPIRED),
    Row(403, "destination_ip_prohibited", (PolicyDenied,)),
    Row(403, "destination_ip_prohibited", reply_code=ReplyCode.NOT_ALLOWED),
    Row(504, "connection_timeout", errnos=(errno.ETIMEDOUT,)),
    Row(502, "connection_terminated", errnos=(errno.ECONNRESET, errno.ENOTCONN)),
    Row(502, "connection_refused", reply_code=ReplyCode.CONNECTION_REFUSED),
    Row(500, "proxy_internal_error", reply_code=ReplyCode.GENERAL_FAILURE, errnos=(errno.EADDRNOTAVAIL,)),  # no port
    Row(502, "destination_ip_unroutable", errnos=UNROUTABLE),
    # Of a proxy on the way, or of an egress that cannot carry it.
    Row(502, "destination_unavailable", (ProxyError, AuthError, RemoteProtocolError, EgressError)),
    Row(502, "destination_unavailable", (DialError,), ReplyCode.COMMAND_NOT_SUPPORTED, (None,)),
    Row(502, "destination_unavailable", (DialError,), ReplyCode.ADDRESS_TYPE_NOT_SUPPORTED, (None,)),
    Row(502, "dns_error", errnos=(None,)),
    Row(500, "proxy_internal_error"),
)
"""The first row that matches an error counts."""


def refusal_of(exc: TabiError) -> Refusal:
    """Make the refusal of a request that cannot or may not be carried out."""
    # Another proxy may have sent any number.
    known = exc.reply_code is not None and exc.reply_code in REPLIES
    reply_code = exc.reply_code if known and exc.reply_code is not None else ReplyCode.GENERAL_FAILURE
    if isinstance(exc, HttpError | ExchangeFailed):  # they have found their status
        return Refusal(str(exc), reply_code, exc.status, exc.error, close=CLOSE.get(exc.status, "error"))
    row = next(row for row in TABLE if row.has(exc))
    if isinstance(exc, PolicyDenied):
        return Refusal(str(exc), reply_code, row.status, row.error, exc.action, close="denied")
    return Refusal(str(exc), reply_code, row.status, row.error, close=CLOSE.get(row.status, "error"))


def login_refused(text: str) -> Refusal:
    """Make the refusal of a client that must be a user and has not proven it."""
    return Refusal(text, ReplyCode.NOT_ALLOWED, 407, fields=CHALLENGE, close="denied")


def login_failed(text: str) -> Refusal:
    """Make the refusal of a client when we failed to find out who it is: that says nothing about the client."""
    return Refusal(text, ReplyCode.GENERAL_FAILURE, 503, login_status=2)


def login_dropped(text: str) -> Refusal:
    """Make the refusal of a client whose login is one too many: a reset, so that it keeps nothing here."""
    return Refusal(text, ReplyCode.GENERAL_FAILURE, 503, action="reset", close="limit")
