"""Feed HTTP's decoders with whatever a fuzzer invents: however it is cut, and parsed or not, the same comes of it.

The first octet chooses the decoder, the second how the rest is cut.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tabi.errors import RemoteProtocolError
from tabi.wire.http import (
    Chunked,
    Request,
    Response,
    decode_basic,
    decode_request,
    decode_response,
    encode_error,
    encode_request,
    encode_response,
    parse_request,
    parse_response,
    rewrite_request,
    rewrite_response,
)

LIMIT = 500
METHODS = ("GET", "HEAD", "CONNECT")


def read_head(data: bytes, size: int, decode: Callable[[bytearray, int], Any]) -> Any:
    """Message and octets, None, or the error's status, of octets that come ``size`` at a time."""
    buffer = bytearray()
    try:
        for at in range(0, len(data), size):
            buffer += data[at : at + size]
            if (found := decode(buffer, at)) is not None:
                return found
    except RemoteProtocolError as exc:
        return getattr(exc, "status", 502)
    return None


def read_chunked(data: bytes, size: int) -> tuple[int, bytes, bool] | None:
    """Octets of the body, its content and whether it has ended; None where it is refused."""
    chunked, taken, payload = Chunked(), 0, b""
    try:
        for at in range(0, len(data), size):
            slices: list[memoryview] = []
            taken += chunked.scan(data[at : at + size], slices)
            payload += b"".join(slices)
            assert len(chunked.line) < 8192
    except RemoteProtocolError:
        return None
    return taken, payload, chunked.done


def send_on(message: Request | Response) -> None:
    """What is sent on is one head, and the next reader sees the same in it."""
    if isinstance(message, Response):
        octets = encode_response(message, message.keep_alive)
        again: Any = decode_response(octets, "GET" if message.body else "HEAD")
    elif message.path:
        octets = encode_request(message, message.keep_alive)
        assert octets.count(b"\r\n\r\n") == 1
        authority = b"" if message.path == "*" else message.path.encode()
        target = b"http://%b%b" % (str(message.destination).encode(), authority)
        octets = octets.replace(b" %b " % message.path.encode(), b" %b " % target, 1)
        again = decode_request(octets)
        assert again[0].destination == message.destination
        assert again[0].path == message.path
    else:
        return
    assert again[1] == len(octets)
    assert again[0].body == message.body


def fuzz_one(data: bytes) -> None:
    """One head or one body. Raises what must not be raised."""
    if len(data) < 2:
        return
    choice, size, rest = data[0], data[1] + 1, data[2:]
    if choice % 4 == 0:
        assert read_chunked(rest, size) == read_chunked(rest, len(rest) or 1)
        decode_basic(rest)
        found = decode_response(encode_error(400, None, rest.decode("latin-1")), "HEAD")
        assert found is not None
        return

    def decode(buffer: bytearray, seen: int) -> Any:
        if choice % 4 == 1:
            return decode_request(buffer, LIMIT, seen)
        return decode_response(buffer, METHODS[choice // 4 % 3], LIMIT, seen)

    def parse(buffer: bytearray, seen: int) -> Any:
        if choice % 4 == 1:
            parsed: Any = parse_request(buffer, LIMIT, seen)
            return parsed and (rewrite_request(parsed[0]), parsed[1])
        parsed = parse_response(buffer, LIMIT, seen)
        return parsed and (rewrite_response(parsed[0], METHODS[choice // 4 % 3]), parsed[1])

    found = read_head(rest, size, decode)
    assert found == read_head(rest, size, parse)
    assert found == read_head(rest, len(rest) or 1, decode)
    if isinstance(found, tuple):
        assert found[1] <= LIMIT
        if choice % 4 == 1 or METHODS[choice // 4 % 3] != "CONNECT":
            send_on(found[0])


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
