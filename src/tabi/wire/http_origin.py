"""HTTP/1 heads between a client and an origin server: only their framing is found out. No I/O.

What is sent on is what came, octet for octet. What two readers could understand in two ways is refused, as in
`wire/http.py`: lengths, codings, hosts, line ends, control octets. Anything else passes, however odd it is, but for an
upgrade to HTTP/2, which would hide all that follows.
"""

from __future__ import annotations

import msgspec

from tabi.errors import HttpError, RemoteProtocolError
from tabi.wire.http_fields import Fields, any_of, find_known, too_many
from tabi.wire.http_framing import LIST_OF_EQUALS, frame_request, frame_response
from tabi.wire.http_syntax import ANSWER_HEAD_LIMIT, HEAD_LIMIT, find_request, find_response, match_request_line

KEPT, USUAL, MAX_DIGITS = b"keep-alive", frozenset(("GET", "POST", "PUT", "PATCH", "DELETE")), 18
KNOWN = any_of([b"connection", b"content-length", b"host", b"transfer-encoding", b"upgrade"])


class OriginRequest(msgspec.Struct, gc=False):
    """The head of a request to an origin server. What it holds may be secret, and is not in the repr.

    Attributes:
        octets: the whole head as it came, with what ends it.
        method: a token.
        target: a path, ``*``, host:port of CONNECT, or a URI.
        minor: of HTTP/1.<minor>.
        fields: each with CRLF in front.
        host: the value of Host; None where there is none.
        body: octets of content that follow, or CHUNKED.
        keep_alive: the client keeps the connection open.
        upgrade: the protocols of Upgrade, only where a change to one is asked for.
        expects_continue: the client waits for 100 (Continue).
    """

    octets: bytes
    method: str
    target: str
    minor: int
    fields: bytes
    host: bytes | None
    body: int
    keep_alive: bool
    upgrade: bytes | None
    expects_continue: bool

    def __repr__(self) -> str:
        return f"OriginRequest({self.method})"


class OriginResponse(msgspec.Struct, gc=False):
    """The head of a response of an origin server.

    Attributes:
        octets: the whole head as it came, with what ends it.
        status: 100 to 999.
        reason: may be empty.
        minor: of HTTP/1.<minor>.
        fields: each with CRLF in front.
        body: octets of content that follow, CHUNKED, or UNTIL_CLOSE.
        keep_alive: the server keeps the connection open.
        upgrade: the value of Upgrade, only of a 101 and a 426.
        interim: another response to the same request follows.
    """

    octets: bytes
    status: int
    reason: bytes
    minor: int
    fields: bytes
    body: int
    keep_alive: bool
    upgrade: bytes | None
    interim: bool

    def __repr__(self) -> str:
        return f"OriginResponse({self.status})"


def decode_origin_request(
    data: bytes | bytearray, limit: int = HEAD_LIMIT, seen: int = 0
) -> tuple[OriginRequest, int] | None:
    """Read a request's head and the octets consumed, or None while octets are missing.

    ``data``, ``limit`` and ``seen`` are as of `wire.http.decode_request`.

    Raises:
        HttpError: it is not a request, or it could be read in two ways, or is too long.
    """
    if (located := find_request(data, limit, seen, match_request_line)) is None:
        return None
    found, end = located
    method, target, _, _, _, digit, fields = found.groups()
    minor = 0 if digit == b"0" else 1
    known = find_known(fields, KNOWN)
    body, keep_alive, upgrade, expects_continue = 0, minor > 0, None, False
    if len(known) > (b"host" in known):
        framing = frame_request(method, minor, known, fields)
        body, keep_alive, expects_continue = framing.body, framing.keep_alive, framing.expects_continue
        upgrade = framing.upgrade
    host, octets = known.get(b"host"), found[0]
    if host is not None and b"\n" in host:
        raise too_many(host, "Host")
    if b"upgrade" in known and b"h2c" in known[b"upgrade"].lower():
        line = found.start(7) - found.start()
        fields = without_http2(fields, upgrade)
        octets = octets[:line] + fields + b"\r\n\r\n"
    return OriginRequest(
        octets,
        method.decode(),
        target.decode("utf-8", "surrogateescape"),
        minor,
        fields,
        host,
        body,
        keep_alive,
        upgrade,
        expects_continue,
    ), end


def without_http2(fields: bytes, upgrade: bytes | None) -> bytes:
    """Fields that offer a change to ``upgrade`` only, or to nothing; see `http_framing.wanted_protocols`."""
    found = Fields.decode(fields)
    found.remove(b"HTTP2-Settings")
    options = b",".join(found.get_all(b"Connection")).split(b",")
    kept = [option.strip() for option in options if option.strip().lower() not in (b"", b"http2-settings")]
    if upgrade is None:
        found.remove(b"Upgrade")
        kept = [option for option in kept if option.lower() != b"upgrade"]
    else:
        found.set(b"Upgrade", upgrade)
    if kept:
        found.set(b"Connection", b", ".join(kept))
    else:
        found.remove(b"Connection")
    return found.encode()


def decode_origin_response(
    data: bytes | bytearray, method: str, limit: int = ANSWER_HEAD_LIMIT, seen: int = 0, after_interim: bool = False
) -> tuple[OriginResponse, int] | None:
    """Read the head of the response to a request with ``method``; see `decode_origin_request`.

    Folded lines and white space in front of colons are mended (RFC 9112 sections 5.1 and 5.2); several equal lengths
    are left as they are.

    Raises:
        RemoteProtocolError: it is not a response, or it could be read in two ways, or is too long.
    """
    try:
        if (located := find_response(data, limit, seen, after_interim)) is None:
            return None
        found, end = located
        digit, code, reason, fields = found.groups(b"")
        minor, status = 0 if digit == b"0" else 1, int(code)
        known = find_known(fields, KNOWN)
        length = known.get(b"content-length")
        plain = len(known) == 1 + (known.get(b"connection") == KEPT) and method in USUAL
        if plain and minor and status == 200 and length is not None and length.isdigit() and len(length) <= MAX_DIGITS:
            return OriginResponse(found[0], status, reason, minor, fields, int(length), True, None, False), end
        if length is not None and not length.isdigit() and (equal := LIST_OF_EQUALS.fullmatch(length)):
            known[b"content-length"] = equal[1]
        framing = frame_response(method, status, minor, known)
    except HttpError as exc:
        raise RemoteProtocolError(str(exc)) from None
    return OriginResponse(
        found[0],
        status,
        reason,
        minor,
        fields,
        framing.body,
        framing.keep_alive,
        framing.upgrade,
        framing.interim,
    ), end
