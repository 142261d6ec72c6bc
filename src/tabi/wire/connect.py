"""CONNECT of HTTP (RFC 9110 section 9.3.6) as a client asks an HTTP proxy for a tunnel. No I/O.

    request     CONNECT host:port HTTP/1.1 CRLF
                Host: host:port CRLF
                Proxy-Authorization: Basic base64(user:password) CRLF      with credentials (RFC 7617)
                CRLF
                or, to ask the proxy itself and nobody behind it (section 7.6.2):
                OPTIONS http://tabi.invalid/ HTTP/1.1 CRLF
                Max-Forwards: 0 CRLF
    answer      the head of a response; those with 1xx before it are skipped, except 101, which was not asked for

The machine is one of `wire/machine.py`:

    ConnectMachine     send()s               reads                    and goes on
    REQUEST            ConnectRequest        ConnectAnswer            OPEN (2xx) or CLOSED
    REQUEST            OptionsRequest        ConnectAnswer            the same

A head is read as `wire/http.py` reads it, so an ambiguous head is refused. What follows a 2xx is payload,
whatever Content-Length says (RFC 9112 section 6.3, rule 2), and is left as ``trailing_data``; what follows any other
answer is text for people and means nothing here. An error holds no text of the proxy, which may be hostile.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from collections.abc import Mapping
from typing import Any

import msgspec

from tabi.errors import RemoteProtocolError
from tabi.wire.address import Address
from tabi.wire.http import decode_response
from tabi.wire.http_answer import CONTROL
from tabi.wire.http_target import AUTHORITY
from tabi.wire.machine import CLOSED, NEED_DATA, OPEN, REQUEST, REQUEST_SENT, Decoder, Machine, State
from tabi.wire.socks5 import Credentials

ANSWER_LIMIT = 8192
"""Octets of the answer's head: a 407 that offers Negotiate has the longest one. A head is searched from its beginning
each time that octets come, which is cheap for a short one."""

MAX_INTERIM = 32
"""Heads with 1xx in front of the answer."""

# RFC 9209 section 2.3: the first member is the error of the proxy that is farthest away.
ERROR = re.compile(rb"\r\n(?i:proxy-status):[^\r]*?;[\t ]*error=([a-z_]{1,40})(?![^\r;,\t ])")


class ConnectRequest(msgspec.Struct, frozen=True):
    """The destination and the credentials."""

    destination: Address
    credentials: Credentials | None = None


class OptionsRequest(msgspec.Struct, frozen=True):
    """Asks the proxy itself for an answer, with these credentials. One that passes it on all the same finds that no
    such host exists: ``.invalid`` is a name of nobody (RFC 6761 section 6.4)."""

    credentials: Credentials | None = None


class ConnectAnswer(msgspec.Struct, frozen=True):
    """The answer's status, and the error that its Proxy-Status names (RFC 9209 section 2.3), or None."""

    status: int
    error: str | None = None


def encode_connect(message: ConnectRequest) -> bytes:
    """Write the head of a request.

    Raises:
        ValueError: the host cannot be written, or the credentials cannot: a user name has no colon, and neither of them
            has control octets (RFC 7617 section 2). The message holds none of them.
    """
    authority = str(message.destination).encode("ascii", "replace")
    if not AUTHORITY.fullmatch(authority):
        raise ValueError(f"{message.destination!s}: not a host that can be written in HTTP")
    return b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (authority, authority, encode_login(message.credentials))


def encode_options(message: OptionsRequest) -> bytes:
    """Write the head of a request for the proxy itself. Raises ValueError as `encode_connect`."""
    head = b"OPTIONS http://tabi.invalid/ HTTP/1.1\r\nHost: tabi.invalid\r\nMax-Forwards: 0\r\nConnection: close\r\n"
    return head + encode_login(message.credentials) + b"\r\n"


def encode_login(credentials: Credentials | None) -> bytes:
    """The field with the credentials, if there are any. Raises ValueError as `encode_connect`."""
    return b"" if credentials is None else b"Proxy-Authorization: Basic %b\r\n" % encode_basic(credentials)


def encode_basic(credentials: Credentials) -> bytes:
    """The counterpart of `http.decode_basic`, without its scheme. Raises ValueError."""
    if b":" in credentials.username:
        raise ValueError("a user name with a colon, which HTTP Basic cannot carry (RFC 7617)")
    both = b"%b:%b" % (credentials.username, credentials.password)
    if CONTROL.search(both):
        raise ValueError("control characters in a user name or a password, which HTTP Basic cannot carry (RFC 7617)")
    return b2a_base64(both, newline=False)


def decode_answer(data: bytearray) -> tuple[ConnectAnswer, int] | None:
    """Read the head at the beginning of ``data``, an interim one too."""
    found = decode_response(data, "CONNECT", ANSWER_LIMIT)
    if found is None:
        return None
    response, end = found
    error = ERROR.search(data, 0, end)
    return ConnectAnswer(response.status, error[1].decode() if error else None), end


class ConnectMachine(Machine):
    """The client's side of one CONNECT, up to the point where its octets are payload."""

    __slots__ = ("interim",)

    first = REQUEST
    decoders: Mapping[State, Decoder] = {REQUEST_SENT: decode_answer}

    def __init__(self) -> None:
        super().__init__()
        self.interim = 0

    def next_event(self) -> Any:
        """As `Machine.next_event`. Raises RemoteProtocolError also for too many interim answers."""
        while (message := super().next_event()) is not NEED_DATA and is_interim(message):
            self.interim += 1
            if self.interim > MAX_INTERIM:
                self.state = CLOSED
                raise RemoteProtocolError(f"more than {MAX_INTERIM} interim answers")
        return message

    def receive(self, message: Any) -> None:
        """Change the state after an answer."""
        if not is_interim(message):
            self.state = OPEN if 200 <= message.status < 300 else CLOSED

    def send(self, message: ConnectRequest | OptionsRequest) -> bytes:
        """Return the octets of a request and move on.

        Raises:
            LocalProtocolError: it does not fit the state.
            ValueError: it cannot be written; the state is unchanged.
        """
        if self.state is REQUEST and isinstance(message, ConnectRequest | OptionsRequest):
            octets = encode_connect(message) if isinstance(message, ConnectRequest) else encode_options(message)
            self.state = REQUEST_SENT
            return octets
        raise self.wrong(message)


def is_interim(answer: ConnectAnswer) -> bool:
    """Whether another one follows (RFC 9110 section 15.2)."""
    return answer.status < 200 and answer.status != 101
