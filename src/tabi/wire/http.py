"""HTTP/1.0 and 1.1 as a forward proxy reads and writes it: RFC 9112, with the words of RFC 9110. No I/O.

Forwarding reads a head and makes what is sent on of it in one go (`decode_request`, `decode_response`). Code that wants
to read or change fields parses the head first (`wire/http_head.py`) and has it rewritten: the result is the same. The
parts that both need are in other modules:

    http_syntax.py     lines and octets                  http_framing.py    content, connection, upgrade
    http_target.py     targets                           http_answer.py     answers of the proxy itself
    http_fields.py     fields and their values           http_body.py       chunks
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from tabi.errors import HttpError, RemoteProtocolError
from tabi.wire.address import Address
from tabi.wire.http_answer import CONNECT_ESTABLISHED, decode_basic, encode_connection, encode_date, encode_error
from tabi.wire.http_body import Chunked
from tabi.wire.http_fields import (
    CONTENT_LENGTH,
    KNOWN_OF_REQUEST,
    OF_CONNECTION,
    PROTECTED,
    PROTECTED_IN_RESPONSE,
    Field,
    Fields,
    any_of,
    decode_number,
    take_out,
    too_many,
    without,
)
from tabi.wire.http_framing import CHUNKED, EXPECT, UNTIL_CLOSE, frame_request, frame_response, take_out_of_response
from tabi.wire.http_head import RequestHead, ResponseHead, parse_request, parse_response
from tabi.wire.http_syntax import (
    ANSWER_HEAD_LIMIT,
    EMPTY_LINES,
    HEAD_LIMIT,
    check_request_line,
    find_request,
    find_response,
)
from tabi.wire.http_target import decode_target

__all__ = [
    "ANSWER_HEAD_LIMIT",
    "CHUNKED",
    "CONNECT_ESTABLISHED",
    "EMPTY_LINES",
    "HEAD_LIMIT",
    "UNTIL_CLOSE",
    "Chunked",
    "Field",
    "Fields",
    "Request",
    "RequestHead",
    "Response",
    "ResponseHead",
    "decode_basic",
    "decode_request",
    "decode_response",
    "encode_date",
    "encode_error",
    "encode_request",
    "encode_response",
    "parse_request",
    "parse_response",
    "rewrite_request",
    "rewrite_response",
]

CHALLENGE, SUPPORT = any_of([b"www-authenticate"]), any_of([b"proxy-support"])
MAX_FORWARDS = any_of([b"max-forwards"])

VIA = (b"\r\nVia: 1.0 tabi", b"\r\nVia: 1.1 tabi")
CODING = b"\r\nTransfer-Encoding: chunked"
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*("?)')
MEMBER = re.compile(rb'(?:[^",]++|"(?:[^"\\]++|\\.)*")+')
"""A member of a list of RFC 8941, with its parameters, where every string has its end."""


class Request(msgspec.Struct, frozen=True):
    """What a client asks a proxy for. The target and the fields, which hold secrets, are not in the repr.

    Attributes:
        method: a token; methods are case-sensitive.
        target: as sent.
        minor: of HTTP/1.<minor>, 0 or 1; later ones are read as 1.
        head: to send to the destination, without what ends it: request line, Host, the fields that are not for us
            as they came, and Via. Empty for CONNECT.
        body: octets of content that follow, or CHUNKED.
        destination: where the target points.
        keep_alive: the client keeps the connection open.
        upgrade: the value of Upgrade, only where a change of protocols is really asked for.
        expects_continue: the client waits for 100 (Continue) before it sends content.
        authorization: the value of Proxy-Authorization.
        max_forwards: how many more proxies may follow, for TRACE and OPTIONS only.
        tls: the destination is to be spoken with inside TLS: https and wss.
        authenticates_connection: its Authorization is for the connection, not only for itself (NTLM, Negotiate).
    """

    method: str
    target: str
    minor: int
    head: bytes
    body: int
    destination: Address
    keep_alive: bool
    upgrade: bytes | None = None
    expects_continue: bool = False
    authorization: bytes | None = None
    max_forwards: int | None = None
    tls: bool = False
    authenticates_connection: bool = False

    @property
    def path(self) -> str:
        """The target to send to the destination: "/path?query", "*" for OPTIONS of it all, "" for CONNECT."""
        return self.head.split(b" ", 2)[1].decode() if self.head else ""

    @property
    def final_recipient(self) -> bool:
        """Whether the proxy itself is to answer (RFC 9110 section 7.6.2)."""
        return self.max_forwards == 0

    def __repr__(self) -> str:
        return f"Request({self.method} {self.destination})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("method", self.method), ("destination", self.destination)]


class Response(msgspec.Struct, frozen=True):
    """What a server answers.

    Attributes:
        status: 100 to 999.
        reason: may be empty.
        minor: of HTTP/1.<minor>, 0 or 1; later ones are read as 1.
        fields: to send to the client, as they came, each with CRLF in front; Content-Length is among them.
        body: octets of content that follow, CHUNKED, or UNTIL_CLOSE. After 101 the other protocol follows.
        keep_alive: the server keeps the connection open.
        interim: another response to the same request follows (RFC 9110 section 15.2).
        upgrade: the value of Upgrade, only of a 101 and a 426; it is among the fields, too.
    """

    status: int
    reason: bytes
    minor: int
    fields: bytes
    body: int
    keep_alive: bool
    interim: bool = False
    upgrade: bytes | None = None

    @property
    def dated(self) -> bool:
        """Whether it has a Date, or needs none."""
        return self.fields.lower().find(b"\r\ndate:") >= 0 or self.status < 200  # faster than ``in``

    @property
    def authenticates_connection(self) -> bool:
        """Whether it asks for credentials that are for the connection (NTLM, Negotiate)."""
        return self.status == 401 and asks_for_authentication_of_connection(self.fields)


# --- decoding: (message, octets consumed), or None while octets are missing ---


def decode_request(data: bytes | bytearray, limit: int = HEAD_LIMIT, seen: int = 0) -> tuple[Request, int] | None:
    """Read a request's head; what follows it is not looked at.

    Args:
        data: the connection's octets from the end of the last request on.
        limit: octets of a whole head.
        seen: how many of ``data`` an earlier call has seen, which made None of them: they are not searched again.

    Raises:
        HttpError: it is not a request, or it could be read in two ways, is too long, or only a server could answer
            it. As soon as that is certain, as far as it can be told by lines and octets.
    """
    if (located := find_request(data, limit, seen, check_request_line)) is None:
        return None
    found, end = located
    return forward_request(*found.groups()), end


def rewrite_request(head: RequestHead) -> Request:
    """Make a request of a head, as `decode_request` does of octets.

    Raises:
        HttpError: as `decode_request`.
        ValueError: its first line was changed and is not valid.
    """
    method, target, secure, authority, path, digit = head.match_line().groups()
    return forward_request(method, target, secure, authority, path, digit, head.fields.encode())


def forward_request(
    method: bytes,
    target: bytes,
    secure: bytes | None,
    authority: bytes | None,
    path: bytes | None,
    digit: bytes,
    fields: bytes,
) -> Request:
    """Make the request to send on of the parts of a head, as REQUEST_HEAD finds them. Raises HttpError."""
    destination, host, path, user = decode_target(method, target, secure, authority, path)
    minor = 0 if digit == b"0" else 1
    known, fields = take_out(fields, KNOWN_OF_REQUEST)
    # What Host says is ignored: the target decides, and Host is made of it (RFC 9112 section 3.2.2).
    named = known.get(b"host")
    if named is None:
        if minor and path:  # RFC 9112 3.2: we take a CONNECT without it, as several clients send it
            raise HttpError("request: no Host field, expected 1")
    elif 0x0A in named:  # of `take_out`
        raise too_many(named, "Host")
    framing = frame_request(method, minor, known, fields)
    own, authorization = known.get(b"authorization"), known.get(b"proxy-authorization")
    if authorization and b"\n" in authorization:
        raise too_many(authorization, "Proxy-Authorization")
    if not minor:  # it means nothing there
        fields = EXPECT.sub(b"", fields)
    max_forwards = None
    if method in (b"OPTIONS", b"TRACE"):
        max_forwards, fields = count_forward(fields)
    body, head = framing.body, b""
    if path:
        coding = CODING if body == CHUNKED else b""
        if user and own is None:
            coding += b"\r\nAuthorization: " + user
        fields = without(fields, framing.options, PROTECTED)
        head = b"".join((method, b" ", path, b" HTTP/1.1\r\nHost: ", host, fields, coding, VIA[minor]))
    return Request(
        method.decode(),
        target.decode("utf-8", "surrogateescape"),
        minor,
        head,
        body,
        destination,
        framing.keep_alive,
        framing.upgrade,
        framing.expects_continue,
        authorization,
        max_forwards,
        bool(secure),
        own is not None and OF_CONNECTION.search(own) is not None,
    )


def decode_response(
    data: bytes | bytearray, method: str, limit: int = ANSWER_HEAD_LIMIT, seen: int = 0, after_interim: bool = False
) -> tuple[Response, int] | None:
    """Read the head of a response to a request with ``method``; see `decode_request`.

    ``after_interim`` says that an interim response was read before it: then empty lines are passed over.

    Raises:
        RemoteProtocolError: it is not a response, or it could be read in two ways, or is too long.
    """
    try:
        if (located := find_response(data, limit, seen, after_interim)) is None:
            return None
        found, end = located
        digit, code, reason, fields = found.groups(b"")
        return forward_response(method, digit, code, reason, fields), end
    except HttpError as exc:
        raise RemoteProtocolError(str(exc)) from None


def rewrite_response(head: ResponseHead, method: str) -> Response:
    """Make a response of a head, as `decode_response` does of octets.

    Raises:
        RemoteProtocolError: as `decode_response`.
        ValueError: its first line was changed and is not valid.
    """
    digit, code, reason = head.match_line().groups(b"")
    try:
        return forward_response(method, digit, code, reason, head.fields.encode())
    except HttpError as exc:
        raise RemoteProtocolError(str(exc)) from None


def forward_response(method: str, digit: bytes, code: bytes, reason: bytes, fields: bytes) -> Response:
    """Make the response to send on of the parts of a head, as RESPONSE_HEAD finds them. Raises HttpError."""
    minor, status = 0 if digit == b"0" else 1, int(code)
    known, fields = take_out_of_response(fields)
    framing = frame_response(method, status, minor, known)
    if b"proxy-status" in known:
        fields += proxy_status_of_others(known[b"proxy-status"])
    fields = without(fields, framing.options, PROTECTED_IN_RESPONSE)
    if framing.upgrade is not None:
        fields = b"\r\nUpgrade: " + framing.upgrade + fields
    if status == 401 and asks_for_authentication_of_connection(fields):  # some clients give no answer without this
        fields = SUPPORT.sub(b"", fields) + b"\r\nProxy-Support: Session-Based-Authentication"
    return Response(status, reason, minor, fields, framing.body, framing.keep_alive, framing.interim, framing.upgrade)


def asks_for_authentication_of_connection(fields: bytes) -> bool:
    """Whether an answer's fields ask for NTLM or Negotiate (RFC 4559)."""
    return any(OF_CONNECTION.search(value) for _, value in CHALLENGE.findall(fields))


def proxy_status_of_others(value: bytes) -> bytes:
    """The field without the members that claim to come from tabi: only our own answers have such a member (RFC
    9209)."""
    value = value.replace(b"\n", b",")
    if not all(STRING.findall(value)):
        return b""  # what is not a list means nothing (RFC 8941 section 4.2)
    members = (member.strip() for member in MEMBER.findall(value))
    others = [member for member in members if member and member.partition(b";")[0].strip(b'" \t').lower() != b"tabi"]
    return b"\r\nProxy-Status: " + b", ".join(others) if others else b""


def count_forward(fields: bytes) -> tuple[int | None, bytes]:
    """Max-Forwards, and the fields with one less (RFC 9110 section 7.6.2)."""
    found = MAX_FORWARDS.findall(fields)
    if not found:
        return None, fields
    if len(found) > 1:
        raise HttpError(f"{len(found)} Max-Forwards fields, expected 1")
    number = decode_number(found[0][1].strip(), "Max-Forwards")
    return number, MAX_FORWARDS.sub(b"\r\nMax-Forwards: %d" % max(number - 1, 0), fields)


# --- encoding ---


def encode_request(request: Request, keep_alive: bool = True) -> bytes:
    """The head to send to the destination; not for CONNECT, and not where the proxy is the `final_recipient`.

    Args:
        request: from the client. Its Host is replaced by the target's (RFC 9112 section 3.2.2).
        keep_alive: we keep the connection to the destination.
    """
    if request.upgrade is not None:
        option = b"upgrade" if keep_alive else b"close, upgrade"
        return b"%b\r\nConnection: %b\r\nUpgrade: %b\r\n\r\n" % (request.head, option, request.upgrade)
    return request.head + (b"\r\n\r\n" if keep_alive else b"\r\nConnection: close\r\n\r\n")


def encode_response(
    response: Response, keep_alive: bool, minor: int = 1, body: int | None = None, date: bytes = b""
) -> bytes:
    """The head to send to the client; not of a tunnel that CONNECT opened, whose fields are not checked.

    Args:
        response: from the destination.
        keep_alive: we keep the connection to the client. Impossible, so not announced, with a body UNTIL_CLOSE.
        minor: of the client's HTTP/1.<minor>. For 0 a CHUNKED body becomes one UNTIL_CLOSE, whose chunks the caller
            takes apart.
        body: CHUNKED or UNTIL_CLOSE where the caller sends the content so, though it came otherwise.
        date: a field (`encode_date`), for a response that is not ``dated``.
    """
    status, fields = response.status, response.fields
    if body is None:
        body = response.body
    if body == CHUNKED and not minor:
        body = UNTIL_CLOSE
    # Else it is sent also without the content: a HEAD asks for it.
    if body < 0 or status < 200 or status == 204:
        fields = CONTENT_LENGTH.sub(b"", fields)
    coding = CODING if body == CHUNKED else b""
    connection = b""
    if status == 101:
        connection = b"\r\nConnection: upgrade"
    elif not response.interim:
        connection = encode_connection(keep_alive and body != UNTIL_CLOSE, minor)
    top = b"HTTP/1.1 %d " % status
    return b"".join((top, response.reason, fields, coding, date, VIA[response.minor], connection, b"\r\n\r\n"))
