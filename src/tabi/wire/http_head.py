"""The heads of HTTP/1 messages as they are read and changed: first line and fields. No I/O.

found = parse_request(octets)        a RequestHead and the octets consumed, None while octets are missing
head.fields.set(b"X-Trace", b"1")    all else stays as it came, octet for octet
head.framing()                       where the content ends, as the head is now
head.encode()                        the octets of the head
rewrite_request(head)                what a forward proxy sends on of it (`wire/http.py`)
"""

from __future__ import annotations

import re

from tabi.errors import HttpError, RemoteProtocolError
from tabi.wire.http_fields import KNOWN_OF_REQUEST, Fields, take_out
from tabi.wire.http_framing import (
    RequestFraming,
    ResponseFraming,
    frame_request,
    frame_response,
    take_out_of_response,
)
from tabi.wire.http_syntax import (
    ANSWER_HEAD_LIMIT,
    HEAD_LIMIT,
    REQUEST_LINE_ONLY,
    STATUS_LINE_ONLY,
    check_request_line,
    find_request,
    find_response,
    match_request_line,
)
from tabi.wire.http_target import decode_target


class RequestHead:
    """The head of a request; all of it may be changed.

    Attributes:
        method: a token; methods are case-sensitive.
        target: as sent; octets beyond ASCII are read as UTF-8, and others are surrogates, as in `os.fsdecode`.
        minor: of HTTP/1.<minor>, as sent; all but 0 are read as 1.
        fields: in their order.
    """

    __slots__ = ("fields", "method", "minor", "target")

    def __init__(self, method: str, target: str, fields: Fields, minor: int = 1) -> None:
        self.method = method
        self.target = target
        self.fields = fields
        self.minor = minor

    def __repr__(self) -> str:
        return f"RequestHead({self.method}, {self.fields})"  # the target may hold a secret

    def match_line(self) -> re.Match[bytes]:
        """Match the request line against its grammar. Raises ValueError if it was changed and is not valid."""
        line = f"{self.method} {self.target} HTTP/1.{self.minor}".encode("utf-8", "surrogateescape")
        found = REQUEST_LINE_ONLY.fullmatch(line)
        if found is None:
            raise ValueError("request line: expected a method, a target and a version, without spaces in them")
        return found

    def encode(self) -> bytes:
        """Write the head. Raises ValueError as `match_line`."""
        return self.match_line()[0] + self.fields.encode() + b"\r\n\r\n"

    def framing(self) -> RequestFraming:
        """Say where its content ends. Raises HttpError where that could be read in two ways."""
        return frame_request(
            self.method.encode("utf-8", "replace"), self.minor, *take_out(self.fields.encode(), KNOWN_OF_REQUEST)
        )


class ResponseHead:
    """The head of a response; all of it may be changed.

    Attributes:
        status: 100 to 999.
        reason: may be empty.
        minor: of HTTP/1.<minor>, as sent; all but 0 are read as 1.
        fields: in their order.
    """

    __slots__ = ("fields", "minor", "reason", "status")

    def __init__(self, status: int, reason: bytes, fields: Fields, minor: int = 1) -> None:
        self.status = status
        self.reason = reason
        self.fields = fields
        self.minor = minor

    def __repr__(self) -> str:
        return f"ResponseHead({self.status}, {self.fields})"

    def match_line(self) -> re.Match[bytes]:
        """Match the status line against its grammar. Raises ValueError if it was changed and is not valid."""
        found = STATUS_LINE_ONLY.fullmatch(b"HTTP/1.%d %d %b" % (self.minor, self.status, self.reason))
        if found is None:
            raise ValueError("status line: expected a version, a status of three digits and a reason of one line")
        return found

    def encode(self) -> bytes:
        """Write the head. Raises ValueError as `match_line`."""
        return self.match_line()[0] + self.fields.encode() + b"\r\n\r\n"

    def framing(self, method: str) -> ResponseFraming:
        """Say where its content ends, as the answer to a request with ``method``.

        Raises:
            RemoteProtocolError: that could be read in two ways.
        """
        try:
            return frame_response(method, self.status, self.minor, take_out_of_response(self.fields.encode())[0])
        except HttpError as exc:
            raise RemoteProtocolError(str(exc)) from None


def parse_request(
    data: bytes | bytearray, limit: int = HEAD_LIMIT, seen: int = 0, proxied: bool = True
) -> tuple[RequestHead, int] | None:
    """Read a request's head and the octets consumed, or None while octets are missing.

    ``data``, ``limit`` and ``seen`` are as of `decode_request`. Where a proxy is asked (``proxied``) the target is an
    absolute URI, or host:port for CONNECT; otherwise it may also be a path, as an origin server is asked.

    Raises:
        HttpError: it is not a request, or it is too long. What its fields mean is not looked at: `framing` does that.
    """
    check_line = check_request_line if proxied else match_request_line
    if (located := find_request(data, limit, seen, check_line)) is None:
        return None
    found, end = located
    method, target, secure, authority, path, digit, fields = found.groups()
    if proxied:
        decode_target(method, target, secure, authority, path)
    text = target.decode("utf-8", "surrogateescape")
    return RequestHead(method.decode(), text, Fields.decode(fields), int(digit)), end


def parse_response(
    data: bytes | bytearray, limit: int = ANSWER_HEAD_LIMIT, seen: int = 0
) -> tuple[ResponseHead, int] | None:
    """Read a response's head; see `parse_request`.

    Raises:
        RemoteProtocolError: it is not a response, or it is too long.
    """
    try:
        located = find_response(data, limit, seen)
    except HttpError as exc:
        raise RemoteProtocolError(str(exc)) from None
    if located is None:
        return None
    found, end = located
    digit, code, reason, fields = found.groups(b"")
    return ResponseHead(int(code), reason, Fields.decode(fields), int(digit)), end
