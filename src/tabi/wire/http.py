"""HTTP/1.0 and 1.1 as a forward proxy reads and writes it: RFC 9112, with the words of RFC 9110. No I/O.

    request     METHOD SP TARGET SP HTTP/1.x CRLF      TARGET: http://host[:port]/path?query, or host:port for CONNECT
    response    HTTP/1.x SP STATUS SP REASON CRLF      REASON may be missing, also with its space
    then        NAME ":" OWS VALUE OWS CRLF            any number of fields
                CRLF

Whatever two readers of the same octets could take for two things is refused, since one of them is behind us: two
lengths, a length beside chunks, folded lines, lines that end in LF alone, control octets. An error goes to the log, so
it tells nothing of what the peer wrote but a number or a coding that is one short word: all else may hold secrets.
Bodies: `wire/http_body.py`.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Callable, Iterable
from functools import lru_cache
from http import HTTPStatus
from itertools import groupby
from typing import Any

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
Known = dict[bytes, bytes]

# Every run of octets is possessive: it is read once, whatever is in it. No group is: Python 3.11.2 takes some wrongly.
# An http URI is taken apart: authority (what can be seen but "#", "/" and "?"), path and query (all but "#").
# ws is http to a server (RFC 6455 section 3) and asks for an Upgrade; most clients open a tunnel, aiohttp's does not.
TARGET = rb"(?i:http|ws)://([!\"$-.0->@-~]++)([!\"$-~]*+)|[!-~]++"
REQUEST_LINE = rb"(" + TOKEN + rb") (" + TARGET + rb") HTTP/1\.([0-9])"
STATUS_LINE = rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?: (" + TEXT + rb"))?"
FIELD_LINE = rb"\r\n" + TOKEN + rb":" + TEXT
FIELD_LINES = rb"((?:%b){0,%d})\r\n\r\n" % (FIELD_LINE, FIELDS_LIMIT)
REQUEST_HEAD = re.compile(REQUEST_LINE + FIELD_LINES)
RESPONSE_HEAD = re.compile(STATUS_LINE + FIELD_LINES)
REQUEST_LINE_ONLY = re.compile(REQUEST_LINE)
STATUS_LINE_ONLY = re.compile(STATUS_LINE)
FIELD = re.compile(FIELD_LINE + rb"(?=\r\n)")
SPACE_BEFORE_COLON = re.compile(rb"(?<=\n)(" + TOKEN + rb")[ \t]++:")
LINES = re.compile(rb"(?:[^\x00-\x08\x0a-\x1f\x7f]++|\r\n)*(?:\r\Z)?")
"""A head as far as it has come."""

OLD_REQUEST_LINE = re.compile(TOKEN + rb" (?!HTTP/)[!-~]++")
"""Of HTTP/0.9, which has no versions and no fields."""

OTHER_VERSION = re.compile(rb"HTTP/[0-9](?:\.[0-9])?")
OTHER_URI = re.compile(rb"(?!(?i:http|ws):)[A-Za-z][A-Za-z0-9+.-]*+://")
SHORT_WORD = re.compile(rb"[!-~]{1,32}")
# Of what RFC 3986 lets a name hold, what names of hosts have: nothing percent-encoded, nothing that parts lists.
AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]|[A-Za-z0-9._~-]{1,255})(?::([0-9]{0,5}))?")
BASIC = re.compile(rb"basic +((?:[a-z0-9+/]{4})*(?:[a-z0-9+/]{2}==|[a-z0-9+/]{3}=)?)", re.IGNORECASE)
CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
NOT_IN_STRING = re.compile(r"[^ -~]")

HOP_BY_HOP = frozenset(
    b"close connection keep-alive proxy-authenticate proxy-authentication-info proxy-authorization proxy-connection "
    b"te transfer-encoding upgrade".split()
)
"""Fields that are for one connection (RFC 9110 section 7.6.1), Transfer-Encoding, which is written anew, and Close,
which is no field, but may be named in Connection as if it were."""

REWRITTEN_OF_RESPONSE = HOP_BY_HOP | {b"content-length"}
REWRITTEN = REWRITTEN_OF_RESPONSE | {b"host"}
PROTECTED_IN_RESPONSE = REWRITTEN_OF_RESPONSE | {b"cache-control", b"via"}
PROTECTED = PROTECTED_IN_RESPONSE | {b"expect", b"host", b"max-forwards"}
"""What Connection cannot take away: what is rewritten, and what is for all on the way (RFC 9110 section 7.6.1)."""


def any_of(names: Iterable[bytes]) -> re.Pattern[bytes]:
    """A pattern of a field, its CRLF in front, that has one of these names; its groups are name and value.

    Most fields have none of them, and are left at the first letter: each is tried once, in a set, which is fast.
    """
    initials = groupby(sorted(names), lambda name: name[:1])
    words = [
        rb"[%b%b](?i:%b)" % (initial, initial.upper(), b"|".join(name[1:] for name in group))
        for initial, group in initials
    ]
    return re.compile(rb"\r\n(" + b"|".join(words) + rb"):([^\r]*+)")


KNOWN_OF_REQUEST = any_of(REWRITTEN)
KNOWN_OF_RESPONSE = any_of(REWRITTEN_OF_RESPONSE | {b"proxy-status"})
EXPECT = any_of([b"expect"])
MAX_FORWARDS = any_of([b"max-forwards"])
CONTENT_LENGTH = any_of([b"content-length"])

VIA = (b"\r\nVia: 1.0 tabi", b"\r\nVia: 1.1 tabi")
CODING = b"\r\nTransfer-Encoding: chunked"
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*("?)')
MEMBER = re.compile(rb'(?:[^",]++|"(?:[^"\\]++|\\.)*")+')
"""Of a list of RFC 8941, with its parameters, where every string has its end."""
NO_OPTIONS: frozenset[bytes] = frozenset()
COMMON_OPTIONS = {option: frozenset((option,)) for option in (b"keep-alive", b"close", b"upgrade")}


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
    """

    status: int
    reason: bytes
    minor: int
    fields: bytes
    body: int
    keep_alive: bool
    interim: bool = False


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
    end = data.find(b"\r\n\r\n", max(at, seen - 3) if seen else at, limit) + 4
    if end < 4:
        check_beginning(data, at, limit, seen, check_request_line)
        return None
    found = REQUEST_HEAD.match(data, at, end)
    if found is None:
        raise wrong_head(bytes(data[at:end]), check_request_line)
    method, target, authority, path, digit, fields = found.groups()
    destination, host, path = decode_target(method, target, authority, path)
    minor = 0 if digit == b"0" else 1
    known, fields = take_out(fields, KNOWN_OF_REQUEST)
    named = known.get(b"host")
    if named is None:
        if minor:
            raise HttpError("request: no Host field, expected 1")
    elif named and named != authority:
        if b"\n" in named:
            raise too_many(named, "Host")
        decode_authority(named, "Host", HTTP_PORT)
    body = decode_framing(known, minor) or 0
    if body and method in (b"CONNECT", b"TRACE"):
        raise HttpError(f"request: {method.decode()} with content")
    options = members(known.get(b"connection"))
    kept = options | members(known.get(b"proxy-connection"))
    # RFC 9112 9.3: we keep HTTP/1.0 connections too, though other proxies between would not understand; clients that
    # ask for it know what they talk to.
    keep_alive = b"close" not in kept and (minor == 1 or b"keep-alive" in kept)
    authorization = known.get(b"proxy-authorization")
    if authorization and b"\n" in authorization:
        raise too_many(authorization, "Proxy-Authorization")
    upgrade = None
    if b"upgrade" in options and minor and not body and method != b"CONNECT":
        upgrade = known.get(b"upgrade", b"").replace(b"\n", b", ") or None
    expects_continue = False
    if not minor:  # it means nothing, and whoever sent it could not read the answer (RFC 9110 section 10.1.1)
        fields = EXPECT.sub(b"", fields)
    elif body:
        expects_continue = any(b"100-continue" in members(value) for _, value in EXPECT.findall(fields))
    max_forwards = None
    if method in (b"OPTIONS", b"TRACE"):
        max_forwards, fields = count_forward(fields)
    head = b""
    if path:
        coding = CODING if body == CHUNKED else b""
        fields = without(fields, options, PROTECTED)
        head = b"".join((method, b" ", path, b" HTTP/1.1\r\nHost: ", host, fields, coding, VIA[minor]))
    request = Request(
        method.decode(),
        target.decode(),
        minor,
        head,
        body,
        destination,
        keep_alive,
        upgrade,
        expects_continue,
        authorization,
        max_forwards,
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
        end = data.find(b"\r\n\r\n", max(0, seen - 3) if seen else 0, limit) + 4
        if end < 4:
            check_beginning(data, 0, limit, seen, check_status_line)
            return None
        found = RESPONSE_HEAD.match(data, 0, end)
        if found is None:
            head = SPACE_BEFORE_COLON.sub(rb"\1:", bytes(data[:end]))  # a proxy removes it (RFC 9112 section 5.1)
            found = RESPONSE_HEAD.match(head)
            if found is None:
                raise wrong_head(head, check_status_line)
        digit, code, reason, fields = found.groups(b"")
        minor, status = 0 if digit == b"0" else 1, int(code)
        known, fields = take_out(fields, KNOWN_OF_RESPONSE)
        # The lengths of a successful response to CONNECT mean nothing (RFC 9112 section 6.3, rule 2).
        tunnel = method == "CONNECT" and 200 <= status < 300
        body = None if tunnel else decode_framing(known, minor)
    except HttpError as exc:
        raise RemoteProtocolError(str(exc)) from None
    if tunnel or method == "HEAD" or status < 200 or status in (204, 304):
        body = 0
    elif body is None:
        body = UNTIL_CLOSE
    options = members(known.get(b"connection"))
    keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options) and body != UNTIL_CLOSE
    if b"proxy-status" in known:
        fields += proxy_status_of_others(known[b"proxy-status"])
    fields = without(fields, options, PROTECTED_IN_RESPONSE)
    if status in (101, 426) and b"upgrade" in known:
        fields = b"\r\nUpgrade: " + known[b"upgrade"].replace(b"\n", b", ") + fields
    return Response(status, reason, minor, fields, body, keep_alive, status < 200 and status != 101), end


def check_beginning(
    data: bytes | bytearray, at: int, limit: int, seen: int, check_line: Callable[[bytes], object]
) -> None:
    """Raise HttpError if the head at ``data[at]``, whose end has not come, is wrong already.

    The order of the checks is that in which octets come, so that an error is the same however they are cut.
    """
    if data.find(b"\n", seen, limit) >= 0:  # a line has ended; perhaps it is the first
        line_end = data.find(b"\r\n", at, limit)
        if line_end >= 0 and line_end + 2 > seen:
            check_line(bytes(data[at:line_end]))
    start = max(at, seen)
    if start > at and data[start - 1] == 0x0D:
        start -= 1
    check_octets(data, start, min(limit, len(data)))
    if len(data) >= limit:
        what, status = ("first line", 414) if data.find(b"\r\n", at, limit) < 0 else ("head", 431)
        raise HttpError(f"{what}: more than {limit} octets", status)


def wrong_head(head: bytes, check_line: Callable[[bytes], object]) -> HttpError:
    """What is wrong with a whole head, without the text of its fields."""
    start = head.index(b"\r\n")
    try:
        check_line(head[:start])
        check_octets(head, start, len(head))
    except HttpError as exc:
        return exc
    for number in range(1, FIELDS_LIMIT + 2):
        found = FIELD.match(head, start)
        if found is None:
            if head[start + 2] in b" \t":
                return HttpError(f"field {number}: white space before its name, or a folded line")
            return HttpError(f"field {number}: expected a name and a colon behind it")
        start = found.end()
    return HttpError(f"head: more than {FIELDS_LIMIT} fields", 431)


def check_octets(data: bytes | bytearray, start: int, end: int) -> None:
    """Raise HttpError if a control octet that has no place in a head stands before ``data[end]``."""
    found = LINES.match(data, start, end)
    if found is not None and found.end() < end:
        raise HttpError(f"head: octet {data[found.end()]:#04x}, expected text and CRLF")


def check_request_line(line: bytes) -> None:
    """Raise HttpError if it is none, or if no proxy is asked by it."""
    found = REQUEST_LINE_ONLY.fullmatch(line)
    if found is None:
        check_octets(line + b"\r\n", 0, len(line) + 2)
        words = line.split(b" ")
        if OLD_REQUEST_LINE.fullmatch(line):
            raise HttpError("request line: HTTP/0.9, expected HTTP/1.0 or HTTP/1.1", 505)
        if len(words) == 3 and OTHER_VERSION.fullmatch(words[2]) and not words[2].startswith(b"HTTP/1."):
            raise HttpError(f"request line: {words[2].decode()}, expected HTTP/1.0 or HTTP/1.1", 505)
        if not line.isascii():
            octet = next(octet for octet in line if octet > 0x7F)
            raise HttpError(f"request line: octet {octet:#04x}, expected ASCII (others are percent-encoded)")
        raise HttpError("request line: expected a method, a target and HTTP/1.1 with one space between them")
    decode_target(*found.group(1, 2, 3, 4))


def decode_target(
    method: bytes, target: bytes, authority: bytes | None, path: bytes | None
) -> tuple[Address, bytes, bytes]:
    """Where a target points, the Host and the path to ask for there (RFC 9112 section 3.2).

    ``authority`` and ``path`` are those of an http URI without a fragment, None of another target.
    """
    if method == b"CONNECT":
        return *decode_authority(target, "target of CONNECT", None), b""
    if authority is None or path is None:
        if target.startswith((b"/", b"*")):
            raise HttpError("target: this is a proxy: ask with an absolute URI or CONNECT")
        if OTHER_URI.match(target):
            raise HttpError("target: another scheme, expected http; https needs CONNECT", 501)
        raise HttpError("target: expected http://host[:port]/path without a fragment")
    if not path.startswith(b"/"):
        path = b"*" if method == b"OPTIONS" and not path else b"/" + path
    return *decode_authority(authority, "target", HTTP_PORT), path


def decode_authority(text: bytes, what: str, default_port: int | None) -> tuple[Address, bytes]:
    """``host[:port]`` and its shortest form; without a default port one must be there. ``what`` is for the error."""
    try:
        return parse_authority(text, default_port)
    except ValueError as exc:
        raise HttpError(f"{what}: {exc}") from exc


@lru_cache(4096)  # of texts that can be one, so of at most 263 octets
def parse_authority(text: bytes, default_port: int | None) -> tuple[Address, bytes]:
    """As `decode_authority`, but raises ValueError."""
    if b"@" in text:
        raise ValueError("user information, expected host[:port]")
    found = AUTHORITY.fullmatch(text)
    if found is None:
        raise ValueError("no " + ("host:port" if default_port is None else "host[:port]"))
    host, digits = (part.decode() for part in found.groups(b""))
    if not digits and default_port is None:
        raise ValueError("no port, expected host:port")
    try:
        address = Address(parse_host(host), parse_port(digits) if digits else default_port or 0)
    except ValueError:  # which tells what it was
        raise ValueError("no IPv6 address in brackets, or a port above 65535") from None
    return address, str(address).removesuffix(f":{HTTP_PORT}").encode()


def check_status_line(line: bytes) -> None:
    """Raise HttpError if it is none."""
    if STATUS_LINE_ONLY.fullmatch(line) is None:
        check_octets(line + b"\r\n", 0, len(line) + 2)
        raise HttpError("status line: expected HTTP/1.1 and a status of three digits")


def take_out(fields: bytes, pattern: re.Pattern[bytes]) -> tuple[Known, bytes]:
    """Those of the fields that mean something here, by the name in lower case, and the others.

    Values of several fields with one name have LF between them, which stands in none. Content-Length stays among the
    others, in its shortest form.
    """
    known: Known = {}
    parts = pattern.split(fields)  # others, name, value, others, name, value, others
    for at in range(1, len(parts), 3):
        name, value = parts[at].lower(), parts[at + 1].strip()
        if name == b"content-length":
            parts[at - 1] += b"\r\nContent-Length: " + (value.lstrip(b"0") or b"0")
        known[name] = known[name] + b"\n" + value if name in known else value
    return known, b"".join(parts[::3])


def without(fields: bytes, options: frozenset[bytes], protected: frozenset[bytes]) -> bytes:
    """The fields but for those that Connection names."""
    if options <= protected:
        return fields
    names, lines = options - protected, fields.split(b"\r\n")
    return b"\r\n".join(line for line in lines if line.partition(b":")[0].lower() not in names)


def proxy_status_of_others(value: bytes) -> bytes:
    """The field without the members that claim to be of tabi: where one is, the answer is our own (RFC 9209)."""
    value = value.replace(b"\n", b",")
    if not all(STRING.findall(value)):
        return b""  # what is no list means nothing (RFC 8941 section 4.2)
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


def decode_framing(known: Known, minor: int) -> int | None:
    """Octets of content, CHUNKED, or None where no field tells (RFC 9112 section 6.3)."""
    coding, length = known.get(b"transfer-encoding"), known.get(b"content-length")
    if coding is None:
        return None if length is None else decode_number(length, "Content-Length")
    if length is not None:
        raise HttpError("Content-Length beside Transfer-Encoding, expected one of them")
    if b"\n" in coding:
        raise too_many(coding, "Transfer-Encoding")
    if not minor:
        raise HttpError("Transfer-Encoding in HTTP/1.0, expected Content-Length")
    # We send no TE, so that nobody may use another coding on the way back.
    if coding.lower() != b"chunked":
        raise HttpError(f"Transfer-Encoding: {shown(coding)}expected chunked", 501)
    return CHUNKED


def decode_number(value: bytes, what: str) -> int:
    """Up to 18 digits, so that nobody's 64 bits overflow; ``what`` is for the error."""
    if not value.isdigit() or len(value) > 18:
        if b"\n" in value:
            raise too_many(value, what)
        raise HttpError(f"{what}: {shown(value)}expected 1 to 18 digits")
    return int(value)


def too_many(value: bytes, what: str) -> HttpError:
    """The error for a field that came more than once, as `take_out` joins them."""
    return HttpError(f"{value.count(10) + 1} {what} fields, expected 1")


def shown(value: bytes) -> str:
    """A value for an error, a comma behind it; nothing if it is more than one short word, for it may be anything."""
    return f"{value.decode()!r}, " if SHORT_WORD.fullmatch(value) else ""


def members(value: bytes | None) -> frozenset[bytes]:
    """What a field that is a list of words holds in all of its lines, in lower case; nothing if there is none."""
    if value is None:
        return NO_OPTIONS
    value = value.lower()
    return COMMON_OPTIONS.get(value) or frozenset(map(bytes.strip, value.replace(b"\n", b",").split(b","))) - {b""}


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
    if request.upgrade is not None:
        option = b"upgrade" if keep_alive else b"close, upgrade"
        return b"%b\r\nConnection: %b\r\nUpgrade: %b\r\n\r\n" % (request.head, option, request.upgrade)
    return request.head + (b"\r\n\r\n" if keep_alive else b"\r\nConnection: close\r\n\r\n")


def encode_response(response: Response, keep_alive: bool, minor: int = 1, body: int | None = None) -> bytes:
    """The head to send to the client; not of a tunnel that CONNECT opened, whose fields are not checked.

    Args:
        response: from the destination.
        keep_alive: we keep the connection to the client. Impossible, so not announced, with a body UNTIL_CLOSE.
        minor: of the client's HTTP/1.<minor>. For 0 a CHUNKED body becomes one UNTIL_CLOSE, whose chunks the caller
            takes apart.
        body: CHUNKED or UNTIL_CLOSE where the caller sends the content so, though it came otherwise.
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
    return b"".join((top, response.reason, fields, coding, VIA[response.minor], connection, b"\r\n\r\n"))


def encode_connection(keep_alive: bool, minor: int) -> bytes:
    """The Connection field for a client of HTTP/1.<minor>, CRLF in front, empty where none is needed."""
    if not keep_alive:
        return b"\r\nConnection: close"
    return b"" if minor else b"\r\nConnection: keep-alive"


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
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text)}".encode("ascii"),
        *(b"\r\n%b: %b" % field for field in fields),
        encode_connection(keep_alive, minor),
        b"\r\n\r\n",
    ]
    return b"".join(lines) + (b"" if head else text.encode("ascii"))
