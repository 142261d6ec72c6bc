"""Hellos of TLS for tests: those of real clients, and those made field by field."""

from __future__ import annotations

import ssl
import struct

from tabi.wire.client_hello import MAX_FRAGMENT


def client_hello(
    name: str | None = "example.com", alpn: tuple[str, ...] = (), context: ssl.SSLContext | None = None
) -> bytes:
    """The first flight of OpenSSL, as Python has it."""
    context = context or ssl.create_default_context()
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def vector(size: int, data: bytes) -> bytes:
    """Octets behind their length."""
    return len(data).to_bytes(size) + data


def numbers(*values: int) -> bytes:
    """Two octets each."""
    return struct.pack(f"!{len(values)}H", *values)


def extension(kind: int, data: bytes) -> bytes:
    """One extension."""
    return numbers(kind) + vector(2, data)


def server_name(name: bytes) -> bytes:
    """The extension with a host name."""
    return extension(0, vector(2, b"\0" + vector(2, name)))


def body(
    *extensions: bytes, version: int = 0x0303, ciphers: bytes = b"\x13\x01", extended: bool = True, rest: bytes = b""
) -> bytes:
    """A ClientHello without the head of the message; ``extended`` says whether there is a list of extensions."""
    listed = vector(2, b"".join(extensions)) if extended else b""
    return numbers(version) + bytes(32) + vector(1, b"s") + vector(2, ciphers) + vector(1, b"\0") + listed + rest


def records(message: bytes, size: int = MAX_FRAGMENT, version: int = 0x0301) -> bytes:
    """A message in records of so many octets."""
    return b"".join(
        b"\x16%b%b" % (numbers(version), vector(2, message[at : at + size])) for at in range(0, len(message), size)
    )


def hello(*extensions: bytes, size: int = MAX_FRAGMENT, ciphers: bytes = b"\x13\x01") -> bytes:
    """A whole ClientHello in records."""
    return records(b"\1" + vector(3, body(*extensions, ciphers=ciphers)), size)
