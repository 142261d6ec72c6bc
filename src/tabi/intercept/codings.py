"""The codings of Content-Encoding (RFC 9110 section 8.4): undone within a bound, and done again as they were."""

from __future__ import annotations

import zlib
from typing import Any

from tabi.errors import TooLarge as TooLarge

GZIP = 16 + zlib.MAX_WBITS
PIECE = 1 << 16


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
        ValueError: a coding is not known, or the content is not of it, or not whole.
        TooLarge: more than ``limit``.
    """
    for name in reversed(codings_of(encoding)):
        data = decode_one(data, name, limit)
    return data


def decode_one(data: bytes, name: str, limit: int) -> bytes:
    """Undo one coding; see `decode_content`."""
    if not data:
        return data
    if name in ("gzip", "deflate"):
        return inflate(data, name, limit)
    if name == "br":
        import brotli

        return brotli_decompress(brotli, data, limit)
    if name == "zstd":
        import zstandard

        return zstd_decompress(zstandard, data, limit)
    raise ValueError(f"Content-Encoding: {name!r} is not known")


def too_large(limit: int) -> TooLarge:
    """The error for a content that grows beyond the limit."""
    return TooLarge(f"the decoded content has more than {limit} octets")


def inflate(data: bytes, name: str, limit: int) -> bytes:
    """Undo gzip (several members) or deflate (with zlib's header or, as some send it, without)."""
    window = GZIP if name == "gzip" else zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS
    parts: list[bytes] = []
    size = 0
    while data:
        decoder = zlib.decompressobj(window)
        try:
            while not decoder.eof:
                part = decoder.decompress(data, min(PIECE, limit - size + 1))
                data = decoder.unconsumed_tail
                if not part and not decoder.eof:
                    raise ValueError(f"{name}: the content is not whole")
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise too_large(limit)
        except zlib.error as exc:
            raise ValueError(f"{name}: {exc}") from None
        data = decoder.unused_data
        if name == "deflate":
            break
    return b"".join(parts)


def brotli_decompress(brotli: Any, data: bytes, limit: int) -> bytes:
    """Undo br."""
    decoder, parts, size = brotli.Decompressor(), [], 0
    try:
        part = decoder.process(data, output_buffer_limit=PIECE)
        while True:
            parts.append(part)
            size += len(part)
            if size > limit:
                raise too_large(limit)
            if decoder.is_finished():
                return b"".join(parts)
            if decoder.can_accept_more_data() and not part:
                raise ValueError("br: the content is not whole")
            part = decoder.process(b"", output_buffer_limit=PIECE)
    except brotli.error as exc:
        raise ValueError(f"br: {exc}") from None


def zstd_decompress(zstandard: Any, data: bytes, limit: int) -> bytes:
    """Undo zstd; its window is bounded to 8 MiB (RFC 9659)."""
    parts, size = [], 0
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 23)
    try:
        with decoder.stream_reader(data, read_across_frames=True) as reader:
            while part := reader.read(PIECE):
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise too_large(limit)
    except zstandard.ZstdError as exc:
        raise ValueError(f"zstd: {exc}") from None
    return b"".join(parts)


def encode_content(data: bytes, encoding: str | None) -> bytes:
    """Do all codings again, at levels that cost little: gzip 6, brotli 4, zstd 3. Raises ValueError for others."""
    for name in codings_of(encoding):
        if name == "gzip":
            encoder = zlib.compressobj(6, zlib.DEFLATED, GZIP)
            data = encoder.compress(data) + encoder.flush()
        elif name == "deflate":
            data = zlib.compress(data, 6)
        elif name == "br":
            import brotli

            data = brotli.compress(data, quality=4)
        elif name == "zstd":
            import zstandard

            data = zstandard.ZstdCompressor(level=3).compress(data)
        else:
            raise ValueError(f"Content-Encoding: {name!r} is not known")
    return data
