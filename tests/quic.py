"""What a client of QUIC sends first, as aioquic makes it, and what anybody may put into an Initial packet."""

from __future__ import annotations

import time
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicProtocolVersion

V1, V2 = QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2


def first_datagrams(name: str | None = "name.test", alpn: tuple[str, ...] = ("h3",), version: int = V1) -> list[bytes]:
    """The first flight: a hello with many protocols takes several datagrams."""
    configuration = QuicConfiguration(alpn_protocols=list(alpn), server_name=name, original_version=version)
    connection: Any = QuicConnection(configuration=configuration)
    connection.connect(("192.0.2.1", 443), time.time())
    return [data for data, _ in connection.datagrams_to_send(time.time())]


def variable(number: int) -> bytes:
    """A number of variable length (RFC 9000 section 16)."""
    size = next(size for size in range(4) if number < 1 << 8 * (1 << size) - 2)
    return (number | size << 8 * (1 << size) - 2).to_bytes(1 << size)


def initial(
    frames: bytes, destination: bytes = b"destined", version: int = V1, keys: bytes | None = None, number: int = 0
) -> bytes:
    """An Initial packet with these frames; ``keys`` is the connection ID that they come from, if it is another one."""
    pair = CryptoPair()
    pair.setup_initial(cid=destination if keys is None else keys, is_client=True, version=version)
    frames += bytes(max(0, 1200 - len(frames)))
    kind = 0 if version == V1 else 1
    head = bytes((0xC1 | kind << 4,)) + version.to_bytes(4) + bytes((len(destination),)) + destination + b"\0\0"
    head += variable(2 + len(frames) + 16) + number.to_bytes(2)
    return pair.encrypt_packet(head, frames, number)


def crypto(offset: int, data: bytes) -> bytes:
    """A CRYPTO frame."""
    return b"\6" + variable(offset) + variable(len(data)) + data
