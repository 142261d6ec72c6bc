"""How an HTTP/1 message is framed: where its content ends, and what happens to the connection after it. No I/O.

    Content-Length, Transfer-Encoding     octets of content, CHUNKED, or UNTIL_CLOSE        RFC 9112 section 6.3
    HEAD, CONNECT, 1xx, 204, 304          no content, whatever the fields say               RFC 9112 section 6.3
    Connection, the version               whether the connection is kept                    RFC 9112 section 9.3
    Upgrade, 101                          another protocol follows                          RFC 9110 section 7.8
    Expect, 1xx                           the client waits, another response follows        RFC 9110 section 10.1.1

Two lengths, or a length beside chunks, are refused: one of two readers would take the rest for another message. Of a
response two that are equal are one.
"""

from __future__ import annotations

import re

import msgspec

from tabi.errors import HttpError
from tabi.wire.http_fields import (
    CONTENT_LENGTH,
    KNOWN_OF_RESPONSE,
    Known,
    any_of,
    decode_number,
    members,
    shown,
    take_out,
    too_many,
)

CHUNKED = -1
UNTIL_CLOSE = -2

EXPECT: re.Pattern[bytes] = any_of([b"expect"])
LIST_OF_EQUALS = re.compile(rb"([0-9]{1,18}+)(?:[ \t]*+[,\n][ \t]*+\1)+")
H2C = re.compile(rb"h2c(?:-[0-9]+)?", re.IGNORECASE)


class RequestFraming(msgspec.Struct, frozen=True, gc=False):
    """How a request is framed.

    Attributes:
        body: octets of content that follow, or CHUNKED.
        options: what Connection names, in lower case.
        keep_alive: the client keeps the connection open.
        upgrade: the value of Upgrade, only where a change of protocols is really asked for.
        expects_continue: the client waits for 100 (Continue) before it sends content.
    """

    body: int
    options: frozenset[bytes]
    keep_alive: bool
    upgrade: bytes | None
    expects_continue: bool


class ResponseFraming(msgspec.Struct, frozen=True, gc=False):
    """How a response is framed.

    Attributes:
        body: octets of content that follow, CHUNKED, or UNTIL_CLOSE. After 101 the other protocol follows.
        options: what Connection names, in lower case.
        keep_alive: the server keeps the connection open.
        upgrade: the value of Upgrade, only of a 101 and a 426.
        interim: another response to the same request follows (RFC 9110 section 15.2).
    """

    body: int
    options: frozenset[bytes]
    keep_alive: bool
    upgrade: bytes | None
    interim: bool


def frame_request(method: bytes, minor: int, known: Known, others: bytes) -> RequestFraming:
    """Frame a request; ``known`` and ``others`` are its fields as `take_out` parts them. Raises HttpError."""
    body = decode_length(known, minor) or 0
    if body and method in (b"CONNECT", b"TRACE"):
        raise HttpError(f"request: {method.decode()} with content")
    options = members(known.get(b"connection"))
    kept, more = options, known.get(b"proxy-connection")
    if more:
        kept = options | members(more)
    # RFC 9112 9.3: we keep HTTP/1.0 connections too, though other proxies between would not understand; clients that
    # ask for it know what they talk to.
    keep_alive = b"close" not in kept and (minor > 0 or b"keep-alive" in kept)
    upgrade = None
    if b"upgrade" in options and minor and not body and method != b"CONNECT":
        upgrade = wanted_protocols(known.get(b"upgrade", b"").replace(b"\n", b", "))
    expects_continue = False
    if body and minor:  # a client of HTTP/1.0 could not read the answer (RFC 9110 section 10.1.1)
        expects_continue = any(b"100-continue" in members(value) for _, value in EXPECT.findall(others))
    return RequestFraming(body, options, keep_alive, upgrade, expects_continue)


def wanted_protocols(value: bytes) -> bytes | None:
    """The value of Upgrade without HTTP/2, None if nothing is left: HTTP2-Settings is for one connection (RFC 7540
    section 3.2.1), and requests inside HTTP/2 would pass without being looked at."""
    if b"h2c" not in value.lower():
        return value or None
    protocols = (protocol.strip() for protocol in value.split(b","))
    return b", ".join(protocol for protocol in protocols if protocol and not H2C.fullmatch(protocol)) or None


def is_offered(chosen: bytes | None, offered: bytes) -> bool:
    """Whether what a 101 names in Upgrade, None if nothing, is among what was offered (RFC 9110 section 7.8)."""
    return chosen is None or not names_of(chosen).isdisjoint(names_of(offered))


def names_of(protocols: bytes) -> set[bytes]:
    """The names in a value of Upgrade, in lower case, without versions."""
    return {protocol.partition(b"/")[0].strip() for protocol in protocols.lower().split(b",") if protocol.strip()}


def take_out_of_response(fields: bytes) -> tuple[Known, bytes]:
    """As `take_out`, of a response: several lengths that are equal are one (RFC 9112 section 6.3, rule 5)."""
    known, others = take_out(fields, KNOWN_OF_RESPONSE)
    length = known.get(b"content-length")
    if length is not None and not length.isdigit() and (found := LIST_OF_EQUALS.fullmatch(length)):
        known[b"content-length"] = found[1]
        others = CONTENT_LENGTH.sub(b"", others) + b"\r\nContent-Length: " + (found[1].lstrip(b"0") or b"0")
    return known, others


def frame_response(method: str, status: int, minor: int, known: Known) -> ResponseFraming:
    """Frame the response to a request with ``method``; ``known`` is of `take_out_of_response`.

    Raises:
        HttpError: it could be read in two ways.
    """
    # The lengths of a successful response to CONNECT mean nothing (RFC 9112 section 6.3, rule 2).
    tunnel = method == "CONNECT" and 200 <= status < 300
    body = None if tunnel else decode_length(known, minor)
    if tunnel or method == "HEAD" or status < 200 or status in (204, 304):
        body = 0
    elif body is None:
        body = UNTIL_CLOSE
    options = members(known.get(b"connection"))
    keep_alive = b"close" not in options and (minor > 0 or b"keep-alive" in options) and body != UNTIL_CLOSE
    upgrade = None
    if status in (101, 426) and b"upgrade" in known:
        upgrade = known[b"upgrade"].replace(b"\n", b", ")
    return ResponseFraming(body, options, keep_alive, upgrade, status < 200 and status != 101)


def decode_length(known: Known, minor: int) -> int | None:
    """Octets of content, CHUNKED, or None where no field tells. Raises HttpError."""
    coding, length = known.get(b"transfer-encoding"), known.get(b"content-length")
    if coding is None:
        return None if length is None else decode_number(length, "Content-Length")
    if length is not None:
        raise HttpError("Content-Length beside Transfer-Encoding, expected one of them")
    if b"\n" in coding:
        raise too_many(coding, "Transfer-Encoding")
    if not minor:
        raise HttpError("Transfer-Encoding in HTTP/1.0, expected Content-Length")
    # We send no TE, so that no server may use another coding on the way back.
    if coding.lower() != b"chunked":
        raise HttpError(f"Transfer-Encoding: {shown(coding)}expected chunked", 501)
    return CHUNKED
