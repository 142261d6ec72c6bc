"""Frames on the control socket: the length of a JSON object (4 octets, the most significant first), then the object."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from typing import Any

import msgspec

MAX_REQUEST = 65_536
"""Octets of a request."""

MAX_ANSWER = 16 << 20
"""Octets of an answer."""

LENGTH = struct.Struct("!I")

decode = msgspec.json.Decoder(dict[str, Any]).decode


def encode_frame(body: Mapping[str, Any]) -> bytes:
    """A frame as it goes over the socket."""
    data = msgspec.json.encode(body)
    return LENGTH.pack(len(data)) + data


def decode_length(head: bytes, limit: int) -> int:
    """How many octets follow. Raises ValueError if those are too many."""
    (length,) = LENGTH.unpack(head)
    if length > limit:
        raise ValueError(f"a frame of {length} octets, expected at most {limit}")
    return int(length)


async def read_frame(reader: asyncio.StreamReader, limit: int) -> dict[str, Any] | None:
    """The next frame, or None if the other end has ended before it.

    Raises:
        ValueError: it is too large, or not a JSON object.
        EOFError: it ends in the middle.
    """
    head = await reader.read(1)
    if not head:
        return None
    head += await reader.readexactly(LENGTH.size - 1)
    return decode(await reader.readexactly(decode_length(head, limit)))


def receive_frame(sock: socket.socket, limit: int) -> dict[str, Any]:
    """The next frame of a blocking socket. Raises as `read_frame` does, and OSError."""
    return decode(receive_exactly(sock, decode_length(receive_exactly(sock, LENGTH.size), limit)))


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """So many octets. Raises EOFError if the other end ends before that."""
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(size - len(data), 1 << 16))
        if not part:
            raise EOFError(f"the end after {len(data)} of {size} octets")
        data += part
    return bytes(data)
