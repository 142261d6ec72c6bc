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


Part = tuple[bytes, bool]
"""What was decoded, up to one octet more than a limit, and whether the content was whole."""


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
    for name in steps(encoding):
        data, whole = decode_one(data, name, limit)
        if len(data) > limit:
            raise TooLarge(f"the decoded content has more than {limit} octets")
        if not whole:
            raise ValueError(f"{name}: the content is not whole")
    return data


def decode_part(data: bytes, encoding: str | None, limit: int) -> tuple[bytes, bool]:
    """As `decode_content`, but what is too large, or not whole, gives its beginning.

    Returns:
        At most ``limit`` octets, and whether that is all.

    Raises:
        ValueError: a coding is not known, the content is not of it, or there are too many.
    """
    complete = True
    for name in steps(encoding):
        data, whole = decode_one(data, name, limit)
        complete = complete and whole
    return data[:limit], complete and len(data) <= limit


def steps(encoding: str | None) -> list[str]:
    """The codings in the order in which they are undone. Raises ValueError where they are too many."""
    codings = codings_of(encoding)
    if len(codings) > MOST_CODINGS:
        raise ValueError(f"Content-Encoding: {len(codings)} codings, at most {MOST_CODINGS} are undone")
    return codings[::-1]


def decode_one(data: bytes, name: str, limit: int) -> Part:
    """Undo one coding. Raises ValueError."""
    if not data:
        return data, True
    if name in ("gzip", "deflate"):
        return inflate(data, name, limit)
    if name == "br":
        return unbrotli(needed("brotli"), data, limit)
    if name == "zstd":
        return unzstd(needed("zstandard"), data, limit)
    raise ValueError(f"Content-Encoding: {name!r} is not known")


def needed(package: str) -> Any:
    """A package that only some content needs. Raises ValueError where it is not there."""
    try:
        return import_module(package)
    except ImportError:
        raise ValueError(f"Content-Encoding: it needs {package}: pip install 'tabi[intercept]'") from None


def inflate(data: bytes, name: str, limit: int) -> Part:
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
            return b"".join(parts), False
        if decoder.eof:
            at -= len(decoder.unused_data)
            if name == "deflate" or view[at : at + 2] != GZIP_MAGIC:
                return b"".join(parts), True
            members += 1
            if members > MEMBERS + len(data) // MEMBER_SIZE:
                raise ValueError(f"{name}: more than {members - 1} members")
            decoder = zlib.decompressobj(window)
        elif not part and at == len(view) and not decoder.unconsumed_tail:
            return b"".join(parts), False


def has_zlib_header(data: bytes) -> bool:
    """Whether it begins as RFC 1950 has it."""
    return len(data) > 1 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0


def unbrotli(brotli: Any, data: bytes, limit: int) -> Part:
    """Undo br."""
    decoder, parts, size, at = brotli.Decompressor(), [], 0, 0
    try:
        while not decoder.is_finished() and size <= limit:
            piece = data[at : at + PIECE] if decoder.can_accept_more_data() else b""
            at += len(piece)
            part = decoder.process(piece, output_buffer_limit=min(PIECE, limit - size + 1))
            parts.append(part)
            size += len(part)
            if not part and at == len(data) and decoder.can_accept_more_data():
                break
    except brotli.error as exc:
        raise ValueError(f"br: {exc}") from None
    return b"".join(parts), decoder.is_finished()


def unzstd(zstandard: Any, data: bytes, limit: int) -> Part:
    """Undo zstd; its window is bounded to 8 MiB (RFC 9659).

    The decoder does not say whether the last frame was whole. So it reads all again with another frame behind it.
    """
    try:
        found = read_zstd(zstandard, data, limit + 1)
    except zstandard.ZstdError as exc:
        raise ValueError(f"zstd: {exc}") from None
    if len(found) > limit:
        return found, False
    end = b"e" * 64  # which its own octets are not: of a frame that is not whole they would be read as content
    try:
        return found, read_zstd(zstandard, data + zstandard.ZstdCompressor().compress(end), limit + 64) == found + end
    except zstandard.ZstdError:
        return found, False


def read_zstd(zstandard: Any, data: bytes, most: int) -> bytes:
    """At most so many octets of what frames carry. Raises ZstdError."""
    parts = []
    with zstandard.ZstdDecompressor(max_window_size=1 << 23).stream_reader(data, read_across_frames=True) as reader:
        while most > 0 and (part := reader.read(min(PIECE, most))):
            parts.append(part)
            most -= len(part)
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
            data = needed("brotli").compress(data, quality=4)
        elif name == "zstd":
            data = needed("zstandard").ZstdCompressor(level=3).compress(data)
        else:
            raise ValueError(f"Content-Encoding: {name!r} is not known")
    return data
