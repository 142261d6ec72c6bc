"""The grammar of HTTP/1 heads: where one ends, whether it is one, and where its target points. No I/O.

    request     METHOD SP TARGET SP HTTP/1.x CRLF      TARGET: http://host[:port]/path?query, or host:port for CONNECT
    response    HTTP/1.x SP STATUS SP REASON CRLF      REASON may be missing, also with its space
    then        NAME ":" OWS VALUE OWS CRLF            any number of fields
                CRLF

What two readers of the same octets could understand in two ways is refused: folded lines, lines that end in LF alone,
control octets. An error goes to the log, so of the peer's text it holds only a number or a version.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from tabi.errors import HttpError
from tabi.wire.address import Address, parse_host, parse_port
from tabi.wire.http_body import TEXT, TOKEN

HEAD_LIMIT = 32768
"""Octets of a head. Browsers stay under 16 KiB, nginx takes 32 KiB, Apache at most 100 fields of 8 KiB."""

FIELDS_LIMIT = 200
EMPTY_LINES = 4
"""Empty lines in front of a request that are ignored: section 2.2 has one, which old clients sent after a POST."""

HTTP_PORT = 80

CheckLine = Callable[[bytes], object]
"""Raises HttpError for a first line that is wrong."""

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
"""The part of a head that has come so far."""

OLD_REQUEST_LINE = re.compile(TOKEN + rb" (?!HTTP/)[!-~]++")
"""Of HTTP/0.9, which has no versions and no fields."""

OTHER_VERSION = re.compile(rb"HTTP/[0-9](?:\.[0-9])?")
OTHER_URI = re.compile(rb"(?!(?i:http|ws):)[A-Za-z][A-Za-z0-9+.-]*+://")
# Of the characters that RFC 3986 allows in a name, those of host names: no percent-encoding, no list separators.
AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]|[A-Za-z0-9._~-]{1,255})(?::([0-9]{0,5}))?")


def find_request(
    data: bytes | bytearray, limit: int, seen: int, check_line: CheckLine
) -> tuple[re.Match[bytes], int] | None:
    """Find a request's head: its match of REQUEST_HEAD and the octets consumed; None while octets are missing.

    Raises:
        HttpError: it is not a request, or too long; as soon as that is certain.
    """
    at = 0
    while data.startswith(b"\r\n", at):
        at += 2
        if at > 2 * EMPTY_LINES:
            raise HttpError(f"request: more than {EMPTY_LINES} empty lines before it")
    end = data.find(b"\r\n\r\n", max(at, seen - 3) if seen else at, limit) + 4
    if end < 4:
        check_beginning(data, at, limit, seen, check_line)
        return None
    found = REQUEST_HEAD.match(data, at, end)
    if found is None:
        raise wrong_head(bytes(data[at:end]), check_line)
    return found, end


def find_response(data: bytes | bytearray, limit: int, seen: int) -> tuple[re.Match[bytes], int] | None:
    """Find a response's head: its match of RESPONSE_HEAD and the octets consumed; None while octets are missing.

    Raises:
        HttpError: it is not a response, or too long; as soon as that is certain.
    """
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
    return found, end


def check_beginning(data: bytes | bytearray, at: int, limit: int, seen: int, check_line: CheckLine) -> None:
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


def wrong_head(head: bytes, check_line: CheckLine) -> HttpError:
    """The error in a whole head, without the text of its fields."""
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
    """Raise HttpError if it is not a request line, or if its target is not one that a proxy is asked for."""
    method, target, authority, path, _ = match_request_line(line).groups()
    decode_target(method, target, authority, path)


def match_request_line(line: bytes) -> re.Match[bytes]:
    """Match a request line, whatever its target is. Raises HttpError if it is not one."""
    found = REQUEST_LINE_ONLY.fullmatch(line)
    if found is not None:
        return found
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


def check_status_line(line: bytes) -> None:
    """Raise HttpError if it is not a status line."""
    if STATUS_LINE_ONLY.fullmatch(line) is None:
        check_octets(line + b"\r\n", 0, len(line) + 2)
        raise HttpError("status line: expected HTTP/1.1 and a status of three digits")


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
    except ValueError:  # its message has the text
        raise ValueError("no IPv6 address in brackets, or a port above 65535") from None
    return address, str(address).removesuffix(f":{HTTP_PORT}").encode()
