"""HTTP/1.0 and 1.1 as a forward proxy reads and writes it: RFC 9112, with the words of RFC 9110. No I/O.

    request     METHOD SP TARGET SP HTTP/1.x CRLF      TARGET: http://host[:port]/path?query, or host:port for CONNECT
    response    HTTP/1.x SP STATUS SP REASON CRLF      REASON may be missing, also with its space
    then        NAME ":" OWS VALUE OWS CRLF            any number of fields
                CRLF

Whatever two readers of the same octets could take for two things is refused, since one of them is behind us: two
lengths, a length beside chunks, folded lines, lines that end in LF alone, control octets. An error tells no field's
value but those of framing and of Host: the others hold secrets. Bodies: `wire/http_body.py`.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Callable, Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Any, TypeVar

import msgspec

from tabi.errors import HttpError, RemoteProtocolError
from tabi.wire.address import Address, parse_host, parse_port
from tabi.wire.http_body import TEXT, TOKEN
from tabi.wire.http_body import Chunked as Chunked  # the other half of reading HTTP: whoever wants one wants both

HEAD_LIMIT = 32768
"""Octets of a head. Browsers stay under 16 KiB, nginx takes 32 KiB, Apache at most 100 fields of 8 KiB."""

FIELDS_LIMIT = 200
EMPTY_LINES = 4
"""Empty lines in front of a request that are ignored: section 2.2 has one, which old clients sent behind a POST."""

CHUNKED = -1
UNTIL_CLOSE = -2
HTTP_PORT = 80

CONNECT_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"

Field = tuple[bytes, bytes]
Line = TypeVar("Line")

# Possessive: a line is read once, whatever is in it. Each field begins behind a LF and ends with the next.
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([!-~]++) HTTP/1\.([0-9])")
STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: (" + TEXT + rb"))?")
FIELD = re.compile(rb"(?<=\n)(" + TOKEN + rb"):[ \t]*+(" + TEXT + rb")\r\n")
FIELD_OF_RESPONSE = re.compile(rb"(?<=\n)(" + TOKEN + rb")[ \t]*+:[ \t]*+(" + TEXT + rb")\r\n")
LINES = re.compile(rb"(?:[^\x00-\x08\x0a-\x1f\x7f]++|\r\n)*(?:\r\Z)?")
"""A head as far as it has come. No possessive group: Python 3.11.2 takes some of them wrongly."""

OLD_REQUEST_LINE = re.compile(TOKEN + rb" (?!HTTP/)[!-~]++")
"""Of HTTP/0.9, which has no versions and no fields."""

OTHER_VERSION = re.compile(rb"HTTP/[0-9](?:\.[0-9])?")
# ws is http to a server (RFC 6455 section 3) and asks for an Upgrade; most clients open a tunnel, aiohttp's does not.
HTTP_URI = re.compile(r"(?:http|ws)://([^/?#]++)([^#]*+)", re.IGNORECASE)
OTHER_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*+)://")
# Of what RFC 3986 lets a name hold, what names of hosts have: nothing percent-encoded, nothing that parts lists.
AUTHORITY = re.compile(r"(\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]|[A-Za-z0-9._~-]{1,255})(?::([0-9]{0,5}))?")
LENGTH = re.compile(rb"[0-9]{1,18}")
BASIC = re.compile(rb"basic +((?:[a-z0-9+/]{4})*(?:[a-z0-9+/]{2}==|[a-z0-9+/]{3}=)?)", re.IGNORECASE)
CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
NOT_IN_STRING = re.compile(r"[^ -~]")

DECODED = frozenset(
    b"connection content-length expect host max-forwards proxy-authorization proxy-connection transfer-encoding "
    b"upgrade".split()
)
"""Fields that mean something here."""

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authentication-info proxy-authorization proxy-connection te "
    b"transfer-encoding upgrade".split()
)
"""Fields that are for one connection (RFC 9110 section 7.6.1), and Transfer-Encoding, which is written anew."""

REWRITTEN = HOP_BY_HOP | {b"content-length", b"expect", b"host", b"max-forwards"}
REWRITTEN_OF_RESPONSE = HOP_BY_HOP | {b"content-length"}
PROTECTED = frozenset((b"cache-control", b"via"))
"""What Connection cannot take away, beside what is rewritten: these are for all on the way (RFC 9110 section 7.6.1)."""

VIA = (b"Via: 1.0 tabi\r\n", b"Via: 1.1 tabi\r\n")
NO_OPTIONS: frozenset[bytes] = frozenset()


class Request(msgspec.Struct, frozen=True):
    """What a client asks a proxy for. The fields, which hold secrets, and the path are not in the repr.

    Attributes:
        method: a token; methods are case-sensitive.
        target: as sent.
        minor: of HTTP/1.<minor>, 0 or 1; later ones are read as 1.
        fields: name as sent, value without outer white space.
        body: octets of content that follow, or CHUNKED.
        destination: where the target points.
        path: the target to send there: "/path?query", "*" for OPTIONS of the whole server, "" for CONNECT.
        keep_alive: the client keeps the connection open.
        upgrade: the value of Upgrade, only where a change of protocols is really asked for.
        expects_continue: the client waits for 100 (Continue) before it sends content.
        authorization: the value of Proxy-Authorization.
        max_forwards: how many more proxies may follow, for TRACE and OPTIONS only.
        connection: what Connection names, in lower case.
    """

    method: str
    target: str
    minor: int
    fields: list[Field]
    body: int
    destination: Address
    path: str
    keep_alive: bool
    upgrade: bytes | None = None
    expects_continue: bool = False
    authorization: bytes | None = None
    max_forwards: int | None = None
    connection: frozenset[bytes] = NO_OPTIONS

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
        fields: name as sent, value without outer white space.
        body: octets of content that follow, CHUNKED, or UNTIL_CLOSE. After 101 the other protocol follows.
        keep_alive: the server keeps the connection open.
        interim: another response to the same request follows (RFC 9110 section 15.2).
        connection: what Connection names, in lower case.
    """

    status: int
    reason: bytes
    minor: int
    fields: list[Field]
    body: int
    keep_alive: bool
    interim: bool = False
    connection: frozenset[bytes] = NO_OPTIONS


# --- decoding: (message, octets consumed), or None while octets are missing ---


def decode_request(data: bytes | bytearray, limit: int = HEAD_LIMIT, seen: int = 0) -> tuple[Request, int] | None:
    """Read a request's head; what follows it is not looked at.

    Args:
        data: the connection's octets from the end of the last request on.
        limit: octets of a whole head.
        seen: how many of ``data`` an earlier call has seen, which made None of them: they are not searched again.

    Raises:
        HttpError: it is no request, one that could be read in two ways, one that is too long, or one that only a
            server could answer. As soon as that is certain, as far as it can be told by lines and octets.
    """
    at = 0
    while data.startswith(b"\r\n", at):
        at += 2
        if at > 2 * EMPTY_LINES:
            raise HttpError(f"request: more than {EMPTY_LINES} empty lines before it")
    head = decode_head(data, at, limit, seen, decode_request_line, FIELD)
    if head is None:
        return None
    (method, target, minor, destination, path), fields, end = head
    known = known_fields(fields)
    hosts = known.get(b"host", [])
    if len(hosts) > 1 or (minor and not hosts):
        raise HttpError(f"request: {len(hosts)} Host fields, expected 1")
    if hosts and hosts[0]:
        decode_authority(hosts[0].decode("latin-1"), "Host", HTTP_PORT)
    body = decode_framing(known, minor) or 0
    if body and method in ("CONNECT", "TRACE"):
        raise HttpError(f"request: {method} with content")
    options = members(known.get(b"connection", ()))
    kept = options | members(known.get(b"proxy-connection", ()))
    # RFC 9112 9.3: we keep HTTP/1.0 connections too, though other proxies between would not understand; clients that
    # ask for it know what they talk to.
    keep_alive = b"close" not in kept and (minor == 1 or b"keep-alive" in kept)
    passwords = known.get(b"proxy-authorization", [])
    if len(passwords) > 1:
        raise HttpError(f"request: {len(passwords)} Proxy-Authorization fields, expected 1")
    upgrade = None
    if b"upgrade" in options and minor and not body and method != "CONNECT":
        upgrade = b", ".join(known.get(b"upgrade", ())) or None
    request = Request(
        method,
        target,
        minor,
        fields,
        body,
        destination,
        path,
        keep_alive,
        upgrade,
        bool(body and minor) and b"100-continue" in members(known.get(b"expect", ())),
        passwords[0] if passwords else None,
        decode_max_forwards(known) if method in ("TRACE", "OPTIONS") else None,
        options,
    )
    return request, end


def decode_response(
    data: bytes | bytearray, method: str, limit: int = HEAD_LIMIT, seen: int = 0
) -> tuple[Response, int] | None:
    """Read the head of a response to a request with ``method``; see `decode_request`.

    Raises:
        RemoteProtocolError: it is no response, one that could be read in two ways, or one that is too long.
    """
    try:
        head = decode_head(data, 0, limit, seen, decode_status_line, FIELD_OF_RESPONSE)
        if head is None:
            return None
        (minor, status, reason), fields, end = head
        known = known_fields(fields)
        # The lengths of a successful response to CONNECT mean nothing (RFC 9112 section 6.3, rule 2).
        tunnel = method == "CONNECT" and 200 <= status < 300
        body = None if tunnel else decode_framing(known, minor)
    except HttpError as exc:
        raise RemoteProtocolError(str(exc)) from None
    if tunnel or method == "HEAD" or status < 200 or status in (204, 304):
        body = 0
    elif body is None:
        body = UNTIL_CLOSE
    options = members(known.get(b"connection", ()))
    keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options) and body != UNTIL_CLOSE
    return Response(status, reason, minor, fields, body, keep_alive, status < 200 and status != 101, options), end


def decode_head(
    data: bytes | bytearray,
    at: int,
    limit: int,
    seen: int,
    decode_line: Callable[[bytes], Line],
    field: re.Pattern[bytes],
) -> tuple[Line, list[Field], int] | None:
    """Read the line at ``data[at]`` and the fields behind it; returns both and the index behind the empty line.

    The order of the checks is that in which octets come, so that an error is the same however they are cut.
    """
    end = data.find(b"\r\n\r\n", max(at, seen - 3), limit)
    if end >= 0:
        line_end = data.find(b"\r\n", at, limit)
        return decode_line(bytes(data[at:line_end])), decode_fields(data, line_end + 2, end + 2, field), end + 4
    if data.find(b"\n", seen, limit) >= 0:  # a line has ended; perhaps it is the first
        line_end = data.find(b"\r\n", at, limit)
        if line_end >= 0 and line_end + 2 > seen:
            decode_line(bytes(data[at:line_end]))
    start = max(at, seen)
    if start > at and data[start - 1] == 0x0D:
        start -= 1
    check_octets(data, start, min(limit, len(data)))
    if len(data) >= limit:
        what, status = ("first line", 414) if data.find(b"\r\n", at, limit) < 0 else ("head", 431)
        raise HttpError(f"{what}: more than {limit} octets", status)
    return None


def check_octets(data: bytes | bytearray, start: int, end: int) -> None:
    """Raise HttpError if a control octet that has no place in a head stands before ``data[end]``."""
    found = LINES.match(data, start, end)
    if found is not None and found.end() < end:
        raise HttpError(f"head: octet {data[found.end()]:#04x}, expected text and CRLF")


def decode_request_line(line: bytes) -> tuple[str, str, int, Address, str]:
    """Method, target, minor version, destination and path."""
    found = REQUEST_LINE.fullmatch(line)
    if found is None:
        check_octets(line + b"\r\n", 0, len(line) + 2)
        words = line.split(b" ")
        if OLD_REQUEST_LINE.fullmatch(line):
            raise HttpError("request line: HTTP/0.9, expected HTTP/1.0 or HTTP/1.1", 505)
        if len(words) == 3 and OTHER_VERSION.fullmatch(words[2]) and not words[2].startswith(b"HTTP/1."):
            raise HttpError(f"request line: {words[2].decode()}, expected HTTP/1.0 or HTTP/1.1", 505)
        raise HttpError("request line: expected a method, a target and HTTP/1.1 with one space between them")
    method, target = found[1].decode(), found[2].decode()
    destination, path = decode_target(method, target)
    return method, target, min(int(found[3]), 1), destination, path


def decode_target(method: str, target: str) -> tuple[Address, str]:
    """Where a target points, and the path to ask for there (RFC 9112 section 3.2)."""
    if method == "CONNECT":
        return decode_authority(target, "target of CONNECT", None), ""
    found = HTTP_URI.fullmatch(target)
    if found is None:
        if target.startswith(("/", "*")):
            raise HttpError("target: this is a proxy: ask with an absolute URI or CONNECT")
        other = OTHER_URI.match(target)
        if other is not None and other[1].lower() not in ("http", "ws"):
            # No more of the scheme than a known one could have: whoever reads the answer chose it.
            raise HttpError(f"target: scheme {other[1][:16]!r}, expected http; https needs CONNECT", 501)
        raise HttpError("target: expected http://host[:port]/path without a fragment")
    authority, path = found.groups()
    if not path.startswith("/"):
        path = "*" if method == "OPTIONS" and not path else "/" + path
    return decode_authority(authority, "target", HTTP_PORT), path


def decode_authority(text: str, what: str, default_port: int | None) -> Address:
    """``host[:port]``; without a default port one must be there. ``what`` is for the error."""
    if "@" in text:
        raise HttpError(f"{what}: user information, expected host[:port]")
    try:
        return parse_authority(text, default_port)
    except ValueError as exc:
        raise HttpError(f"{what}: {exc}") from exc


@lru_cache(4096)  # of texts that can be one, so of at most 263 characters
def parse_authority(text: str, default_port: int | None) -> Address:
    """As `decode_authority`, but raises ValueError."""
    found = AUTHORITY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:300]!r} is no host[:port]")
    host, digits = found.groups()
    if digits:
        return Address(parse_host(host), parse_port(digits))
    if default_port is None:
        raise ValueError(f"{text!r} has no port")
    return Address(parse_host(host), default_port)


def decode_status_line(line: bytes) -> tuple[int, int, bytes]:
    """Minor version, status, reason."""
    found = STATUS_LINE.fullmatch(line)
    if found is None:
        check_octets(line + b"\r\n", 0, len(line) + 2)
        raise HttpError(f"status line: {line[:32]!r}, expected HTTP/1.1 and a status of three digits")
    return min(int(found[1]), 1), int(found[2]), found[3] or b""


def decode_fields(data: bytes | bytearray, start: int, end: int, field: re.Pattern[bytes]) -> list[Field]:
    """The fields whose lines stand in ``data[start:end]``."""
    fields: list[Field] = field.findall(data, start, end)
    # Every match takes one LF: as many as there are, and nothing stands between them.
    if len(fields) != data.count(b"\n", start, end):
        raise wrong_field(data, start, end, field)
    if len(fields) > FIELDS_LIMIT:
        raise HttpError(f"head: {len(fields)} fields, expected at most {FIELDS_LIMIT}", 431)
    if data.find(b" \r\n", start, end) >= 0 or data.find(b"\t\r\n", start, end) >= 0:
        fields = [(name, value.rstrip(b" \t")) for name, value in fields]
    return fields


def wrong_field(data: bytes | bytearray, start: int, end: int, field: re.Pattern[bytes]) -> HttpError:
    """What is wrong with the first line that is no field, without its text."""
    try:
        check_octets(data, start, end)
    except HttpError as exc:
        return exc
    number = 1
    while found := field.match(data, start, end):
        number, start = number + 1, found.end()
    if data[start] in b" \t":
        return HttpError(f"field {number}: white space before its name, or a folded line")
    return HttpError(f"field {number}: expected a name and a colon behind it")


def known_fields(fields: list[Field]) -> dict[bytes, list[bytes]]:
    """The values of those fields that mean something here, by the name in lower case."""
    known: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        if (key := name.lower()) in DECODED:
            known.setdefault(key, []).append(value)
    return known


def decode_framing(known: dict[bytes, list[bytes]], minor: int) -> int | None:
    """Octets of content, CHUNKED, or None where no field tells (RFC 9112 section 6.3)."""
    codings, lengths = known.get(b"transfer-encoding"), known.get(b"content-length")
    if codings:
        if lengths:
            raise HttpError("Content-Length beside Transfer-Encoding, expected one of them")
        if len(codings) > 1:
            raise HttpError(f"{len(codings)} Transfer-Encoding fields, expected 1")
        if not minor:
            raise HttpError("Transfer-Encoding in HTTP/1.0, expected Content-Length")
        # We send no TE, so that nobody may use another coding on the way back.
        if codings[0].lower() != b"chunked":
            raise HttpError(f"Transfer-Encoding: {codings[0][:32]!r}, expected chunked", 501)
        return CHUNKED
    if not lengths:
        return None
    if len(lengths) > 1:
        raise HttpError(f"{len(lengths)} Content-Length fields, expected 1")
    return decode_number(lengths[0], "Content-Length")


def decode_number(value: bytes, what: str) -> int:
    """Up to 18 digits, so that nobody's 64 bits overflow; ``what`` is for the error."""
    if LENGTH.fullmatch(value) is None:
        raise HttpError(f"{what}: {value[:32]!r}, expected 1 to 18 digits")
    return int(value)


def decode_max_forwards(known: dict[bytes, list[bytes]]) -> int | None:
    """RFC 9110 section 7.6.2."""
    values = known.get(b"max-forwards")
    if not values:
        return None
    if len(values) > 1:
        raise HttpError(f"{len(values)} Max-Forwards fields, expected 1")
    return decode_number(values[0], "Max-Forwards")


def members(values: Iterable[bytes]) -> frozenset[bytes]:
    """What a field that is a list of words holds in all of its lines, in lower case."""
    if not values:
        return NO_OPTIONS
    return frozenset(member.strip(b" \t") for member in b",".join(values).lower().split(b","))


def decode_basic(value: bytes) -> tuple[bytes, bytes] | None:
    """User name and password of a value such as ``Basic YWxpY2U6cHc=`` (RFC 7617); None if it is no such value."""
    found = BASIC.fullmatch(value)
    if found is None:
        return None
    credentials = a2b_base64(found[1])
    name, colon, password = credentials.partition(b":")
    return (name, password) if colon and not CONTROL.search(credentials) else None


# --- encoding ---


def encode_request(request: Request, keep_alive: bool = True) -> bytes:
    """The head to send to the destination; not for CONNECT, and not where the proxy is the `final_recipient`.

    Args:
        request: from the client. Its Host is replaced by the target's (RFC 9112 section 3.2.2).
        keep_alive: we keep the connection to the destination.
    """
    authority = str(request.destination).removesuffix(f":{HTTP_PORT}")
    lines = [f"{request.method} {request.path} HTTP/1.1\r\nHost: {authority}\r\n".encode("ascii")]
    dropped = REWRITTEN | request.connection - PROTECTED if request.connection else REWRITTEN
    for field in request.fields:
        key = field[0].lower()
        if key not in dropped:
            lines.append(b"%b: %b\r\n" % field)
        elif key == b"content-length":
            lines.append(b"Content-Length: %d\r\n" % request.body)
        elif key == b"max-forwards":
            left = request.max_forwards
            lines.append(b"Max-Forwards: %b\r\n" % (field[1] if left is None else b"%d" % max(left - 1, 0)))
        elif key == b"expect" and request.minor:
            # Of HTTP/1.0 it means nothing, and whoever sent that could not read the answer (RFC 9110 section 10.1.1).
            lines.append(b"Expect: %b\r\n" % field[1])
    if request.body == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    lines.append(VIA[request.minor])
    if request.upgrade is not None:
        lines.append(
            b"Connection: %b\r\nUpgrade: %b\r\n" % (b"upgrade" if keep_alive else b"close, upgrade", request.upgrade)
        )
    elif not keep_alive:
        lines.append(b"Connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def encode_response(response: Response, keep_alive: bool, minor: int = 1, body: int | None = None) -> bytes:
    """The head to send to the client; not of a tunnel that CONNECT opened, whose fields are not checked.

    Args:
        response: from the destination.
        keep_alive: we keep the connection to the client. Impossible, so not announced, with a body UNTIL_CLOSE.
        minor: of the client's HTTP/1.<minor>. For 0 a CHUNKED body becomes one UNTIL_CLOSE, whose chunks the caller
            takes apart.
        body: CHUNKED or UNTIL_CLOSE where the caller sends the content so, though it came otherwise.
    """
    status = response.status
    if body is None:
        body = response.body
    if body == CHUNKED and not minor:
        body = UNTIL_CLOSE
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, response.reason)]
    dropped = REWRITTEN_OF_RESPONSE
    if response.connection:
        dropped = dropped | response.connection - PROTECTED
    for field in response.fields:
        key = field[0].lower()
        if key not in dropped:
            lines.append(b"%b: %b\r\n" % field)
        elif key == b"content-length" and body >= 0 and status >= 200 and status != 204:
            # Also of content that is not sent: a HEAD asks for it.
            lines.append(b"Content-Length: %d\r\n" % int(field[1]))
        elif key == b"upgrade" and status in (101, 426):
            lines.append(b"Upgrade: %b\r\n" % field[1])
    if body == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    lines.append(VIA[response.minor])
    if status == 101:
        lines.append(b"Connection: upgrade\r\n")
    elif not response.interim:
        lines.append(encode_connection(keep_alive and body != UNTIL_CLOSE, minor))
    lines.append(b"\r\n")
    return b"".join(lines)


def encode_connection(keep_alive: bool, minor: int) -> bytes:
    """The Connection field for a client of HTTP/1.<minor>, empty where none is needed."""
    if not keep_alive:
        return b"Connection: close\r\n"
    return b"" if minor else b"Connection: keep-alive\r\n"


def encode_error(
    status: int,
    error: str | None,
    details: str,
    *,
    minor: int = 1,
    keep_alive: bool = False,
    fields: Iterable[Field] = (),
    head: bool = False,
) -> bytes:
    """A whole response that the proxy itself gives, with the reason in Proxy-Status (RFC 9209) and in its text.

    Args:
        status: a registered one.
        error: a proxy error type of RFC 9209 section 2.3, or None where none fits.
        details: for people; what is not ASCII or cannot be seen becomes a question mark.
        minor: of the client's HTTP/1.<minor>.
        keep_alive: the connection stays open.
        fields: more of them, such as Proxy-Authenticate.
        head: it answers a HEAD: the text is counted, but not sent.
    """
    details = NOT_IN_STRING.sub("?", details)
    quoted = details.replace("\\", "\\\\").replace('"', '\\"')
    reason = HTTPStatus(status).phrase
    text = f"{status} {reason}: {details}\n"
    lines = [
        f"HTTP/1.1 {status} {reason}\r\n"
        f'Proxy-Status: tabi{f"; error={error}" if error else ""}; details="{quoted}"\r\n'
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text)}\r\n".encode("ascii"),
        *(b"%b: %b\r\n" % field for field in fields),
        encode_connection(keep_alive, minor),
        b"\r\n",
    ]
    return b"".join(lines) + (b"" if head else text.encode("ascii"))
