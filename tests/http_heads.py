"""Heads of HTTP/1 for tests: written, read however they are cut, and taken apart again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tabi.errors import RemoteProtocolError
from tabi.wire.http import HEAD_LIMIT, Request, Response, decode_request, decode_response

BODY = b"GET http://b.example/ HTTP/1.1\r\n\r\n\x00\xff"
"""What follows a head: it is never looked at."""


Decode = Callable[..., Any]


def from_server(data: bytes | bytearray, limit: int = HEAD_LIMIT, seen: int = 0, method: str = "GET") -> Any:
    """Decode a response to a GET, with the signature of `decode_request`."""
    return decode_response(data, method, limit, seen)


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """The same octets whole, octet by octet, and cut in two here and there."""
    yield [data]
    yield [data[at : at + 1] for at in range(len(data))]
    for at in range(1, len(data), max(1, len(data) // 20)):
        yield [data[:at], data[at:]]


def read(pieces: list[bytes], decode: Decode, limit: int, remember: bool) -> Any:
    """What comes of pieces: message and octets, None, or the error's type and status. ``remember`` uses ``seen``."""
    buffer = bytearray()
    try:
        for piece in pieces:
            seen = len(buffer) if remember else 0
            buffer += piece
            if (found := decode(buffer, limit=limit, seen=seen)) is not None:
                return found
    except RemoteProtocolError as exc:
        return type(exc), getattr(exc, "status", None)
    return None


def outcome(data: bytes, decode: Decode = decode_request, limit: int = HEAD_LIMIT) -> Any:
    """What comes of octets; it must be the same however they are cut, and whether or not they are searched twice."""
    expected = read([data], decode, limit, False)
    for pieces in cuts(data):
        for remember in (False, True):
            assert read(pieces, decode, limit, remember) == expected
    return expected


def head(line: str, *fields: str) -> bytes:
    """A head of a first line and fields, in latin-1."""
    return "".join(f"{text}\r\n" for text in (line, *fields, "")).encode("latin-1")


def request(*fields: str, line: str = "GET http://a.example/ HTTP/1.1") -> Request:
    """Decode a request that has a Host and these fields, however it is cut."""
    data = head(line, "Host: a.example", *fields)
    message, end = outcome(data + BODY)
    assert end == len(data)
    assert isinstance(message, Request)
    return message


def response(*fields: str, line: str = "HTTP/1.1 200 OK", method: str = "GET") -> Response:
    """Decode a response, however it is cut."""
    data = head(line, *fields)

    def decode(octets: bytearray, limit: int, seen: int) -> Any:
        return decode_response(octets, method, limit, seen)

    message, end = outcome(data + BODY, decode)
    assert end == len(data)
    assert isinstance(message, Response)
    return message


def lines(octets: bytes) -> list[str]:
    """The lines of a head, without the empty one."""
    assert octets.endswith(b"\r\n\r\n")
    return octets.decode("latin-1")[:-4].split("\r\n")


GET = "GET http://a.example/ HTTP/1.1"
POST = "POST http://a.example/ HTTP/1.1"
HOST = "Host: a.example"
LENGTH = "Content-Length: 5"
CODING = "Transfer-Encoding: chunked"
OK = "HTTP/1.1 200 OK"
