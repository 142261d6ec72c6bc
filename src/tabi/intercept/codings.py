"""The codings of Content-Encoding (RFC 9110 section 8.4): undone within a bound, and done again as they were."""

from __future__ import annotations

import zlib
from importlib import import_module
from typing import Any

from tabi.errors import TooLarge as TooLarge

GZIP = 16 + zlib.MAX_WBITS
GZIP_MAGIC = b"\x1f\x8b"

PIECE = 1 << 16
"""Octets that a decoder gets and gives at a time: it copies what it has not read yet."""

MOST_CODINGS = 4
"""Codings of one content. Nobody uses more than one; each may grow up to the limit."""

MEMBERS, MEMBER_SIZE = 1000, 1024
"""Members of gzip that there may be, and one more for each so many octets: each costs 20 us, and may be empty."""


def codings_of(encoding: str | None) -> list[str]:
    """The codings that a Content-Encoding names, in the order in which they were done."""
    names = [name.strip().lower().removeprefix("x-") for name in (encoding or "").split(",")]
    return [name for name in names if name not in ("", "identity")]


def decode_content(data: bytes, encoding: str | None, limit: int) -> bytes:
    """Undo all codings.

    Args:
        data: the content as it was sent.
        encoding: the value of Content-Encoding; gzip, deflate, br and zstd are known.
        limit: octets that any step may give.

    Raises:
        ValueError: a coding is not known, the content is not of it, or not whole, or there are too many.
        TooLarge: more than ``limit``.
    """
    codings = codings_of(encoding)
    if len(codings) > MOST_CODINGS:
        raise ValueError(f"Content-Encoding: {len(codings)} codings, at most {MOST_CODINGS} are undone")
    for name in reversed(codings):
        data = decode_one(data, name, limit)
    return data


def decode_one(data: bytes, name: str, limit: int) -> bytes:
    """Undo one coding; see `decode_content`."""
    if not data:
        return data
    if name in ("gzip", "deflate"):
        return inflate(data, name, limit)
    if name == "br":
        return brotli_decompress(needed("brotli"), data, limit)
    if name == "zstd":
        return zstd_decompress(needed("zstandard"), data, limit)
    raise ValueError(f"Content-Encoding: {name!r} is not known")


def needed(package: str) -> Any:
    """A package that only some content needs. Raises ValueError where it is not there."""
    try:
        return import_module(package)
    except ImportError:
        raise ValueError(f"Content-Encoding: it needs {package}: pip install 'tabi[intercept]'") from None


def too_large(limit: int) -> TooLarge:
    """The error for a content that grows beyond the limit."""
    return TooLarge(f"the decoded content has more than {limit} octets")


def inflate(data: bytes, name: str, limit: int) -> bytes:
    """Undo gzip (several members) or deflate (with zlib's header or, as some send it, without).

    What follows the last member is ignored, as browsers do.
    """
    window = GZIP if name == "gzip" else zlib.MAX_WBITS if has_zlib_header(data) else -zlib.MAX_WBITS
    decoder = zlib.decompressobj(window)
    view, at, members = memoryview(data), 0, 1
    parts: list[bytes] = []
    size = 0
    while True:
        piece = decoder.unconsumed_tail
        if not piece:
            piece = view[at : at + PIECE].tobytes()
            at += len(piece)
        try:
            part = decoder.decompress(piece, min(PIECE, limit - size + 1))
        except zlib.error as exc:
            raise ValueError(f"{name}: {exc}") from None
        parts.append(part)
        size += len(part)
        if size > limit:
            raise too_large(limit)
        if decoder.eof:
            at -= len(decoder.unused_data)
            if name == "deflate" or view[at : at + 2] != GZIP_MAGIC:
                return b"".join(parts)
            members += 1
            if members > MEMBERS + len(data) // MEMBER_SIZE:
                raise ValueError(f"{name}: more than {members - 1} members")
            decoder = zlib.decompressobj(window)
        elif not part and at == len(view) and not decoder.unconsumed_tail:
            raise ValueError(f"{name}: the content is not whole")


def has_zlib_header(data: bytes) -> bool:
    """Whether it begins as RFC 1950 has it."""
    return len(data) > 1 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0


def brotli_decompress(brotli: Any, data: bytes, limit: int) -> bytes:
    """Undo br."""
    decoder, parts, size, at = brotli.Decompressor(), [], 0, 0
    try:
        while not decoder.is_finished():
            piece = data[at : at + PIECE] if decoder.can_accept_more_data() else b""
            at += len(piece)
            part = decoder.process(piece, output_buffer_limit=PIECE)
            parts.append(part)
            size += len(part)
            if size > limit:
                raise too_large(limit)
            if not part and at == len(data) and decoder.can_accept_more_data() and not decoder.is_finished():
                raise ValueError("br: the content is not whole")
    except brotli.error as exc:
        raise ValueError(f"br: {exc}") from None
    return b"".join(parts)


def zstd_decompress(zstandard: Any, data: bytes, limit: int) -> bytes:
    """Undo zstd; its window is bounded to 8 MiB (RFC 9659).

    The decoder does not say whether the last frame was whole. So another one follows, which is only read behind it: its
    own octets are not those that it carries.
    """
    end = b"e" * 64
    data += zstandard.ZstdCompressor().compress(end)
    parts, size = [], 0
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 23)
    try:
        with decoder.stream_reader(data, read_across_frames=True) as reader:
            while part := reader.read(PIECE):
                parts.append(part)
                size += len(part)
                if size > limit + len(end):
                    raise too_large(limit)
    except zstandard.ZstdError as exc:
        raise ValueError(f"zstd: {exc}") from None
    whole = b"".join(parts)
    if not whole.endswith(end):
        raise ValueError("zstd: the content is not whole")
    return whole.removesuffix(end)


def encode_content(data: bytes, encoding: str | None) -> bytes:
    """Do all codings again, at levels that cost little: gzip 6, brotli 4, zstd 3. Raises ValueError for others."""
    for name in codings_of(encoding):
        if name == "gzip":
            encoder = zlib.compressobj(6, zlib.DEFLATED, GZIP)
            data = encoder.compress(data) + encoder.flush()
        elif name == "deflate":
            data = zlib.compress(data, 6)
        elif name == "br":
            data = needed("brotli").compress(data, quality=4)
        elif name == "zstd":
            data = needed("zstandard").ZstdCompressor(level=3).compress(data)
        else:
            raise ValueError(f"Content-Encoding: {name!r} is not known")
    return data
