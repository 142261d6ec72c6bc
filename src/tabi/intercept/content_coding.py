"""Content codings (RFC 9110 section 8.4.1) undone within a bound: what a few octets can become is not believed."""

from __future__ import annotations

import zlib

MAX_CODINGS = 4
"""Codings that content may have, one around the other."""

MAX_WINDOW = 8 << 20
"""Octets of a window of zstd (RFC 9659)."""

PIECE = 64
"""Octets of zstd that are decoded at a time: 16 blocks, which become at most 2 MiB (RFC 8878 section 3.1.1.2)."""

GZIP, ZLIB, RAW = 31, 15, -15
"""What zlib calls ``wbits``."""


def decode_content(data: bytes, codings: bytes, limit: int) -> tuple[bytes, bool]:
    """Undo codings, the last one first, as ``Content-Encoding`` names them.

    Returns at most ``limit`` octets, and whether that is all: it is not if there is more, or ``data`` ends too early.

    Raises:
        ValueError: a coding is unknown, or this is not what it makes.
    """
    names = [name for part in codings.lower().split(b",") if (name := part.strip()) not in (b"", b"identity")]
    if len(names) > MAX_CODINGS:
        raise ValueError(f"{len(names)} content codings, expected at most {MAX_CODINGS}")
    whole = True
    for name in reversed(names):
        if not data:
            break
        data, complete = decode_one(data, name, limit)
        whole = whole and complete
    return data[:limit], whole and len(data) <= limit


def decode_one(data: bytes, name: bytes, limit: int) -> tuple[bytes, bool]:
    """Undo one coding; see `decode_content`."""
    if name in (b"gzip", b"x-gzip"):
        return inflate(data, GZIP, limit)
    if name == b"deflate":  # with the head of zlib, or as some have it without
        try:
            return inflate(data, ZLIB, limit)
        except ValueError:
            return inflate(data, RAW, limit)
    if name == b"br":
        return decode_brotli(data, limit)
    if name == b"zstd":
        return decode_zstd(data, limit)
    raise ValueError("content coding is unknown, expected gzip, deflate, br or zstd")


def inflate(data: bytes, wbits: int, limit: int) -> tuple[bytes, bool]:
    """Undo deflate, in any number of members if it is gzip."""
    parts: list[bytes] = []
    room = limit + 1
    while data and room > 0:
        machine = zlib.decompressobj(wbits)
        try:
            part = machine.decompress(data, room)
        except zlib.error:
            if parts:  # octets behind the end, which gzip ignores as well
                break
            raise ValueError("not compressed as its content coding says") from None
        parts.append(part)
        room -= len(part)
        if not machine.eof:
            return b"".join(parts), False
        data = machine.unused_data if wbits == GZIP else b""
    return b"".join(parts), not data or room > 0


def decode_brotli(data: bytes, limit: int) -> tuple[bytes, bool]:
    """Undo brotli (RFC 7932)."""
    try:
        import brotli
    except ImportError:
        raise ValueError("br needs the package brotli: pip install 'tabi[intercept]'") from None
    machine = brotli.Decompressor()
    parts, room = [], limit + 1
    try:
        part = machine.process(data, output_buffer_limit=room)
        while part:
            parts.append(part)
            room -= len(part)
            if room <= 0 or machine.is_finished():
                break
            part = machine.process(b"", output_buffer_limit=room)
    except brotli.error:
        raise ValueError("not compressed as its content coding says") from None
    return b"".join(parts), machine.is_finished()


def decode_zstd(data: bytes, limit: int) -> tuple[bytes, bool]:
    """Undo zstd (RFC 8878), in any number of frames."""
    try:
        import zstandard
    except ImportError:
        raise ValueError("zstd needs the package zstandard: pip install 'tabi[intercept]'") from None
    make = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj
    parts: list[bytes] = []
    machine, room = make(), limit + 1
    try:
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            while piece and room > 0:
                if machine.eof:
                    machine = make()
                part = machine.decompress(piece)
                parts.append(part)
                room -= len(part)
                piece = machine.unused_data if machine.eof else b""
    except zstandard.ZstdError:
        raise ValueError("not compressed as its content coding says") from None
    return b"".join(parts), machine.eof and room > 0
