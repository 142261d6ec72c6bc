"""The content of HTTP messages while it passes: where it ends, and which octets belong to it."""

from __future__ import annotations

from tabi.wire.http import CHUNKED, UNTIL_CLOSE, Chunked


class Counted:
    """Follows content of a known length; see `Chunked`."""

    __slots__ = ("left",)

    def __init__(self, octets: int) -> None:
        self.left = octets

    @property
    def done(self) -> bool:
        """Whether all of it was seen."""
        return not self.left

    def scan(self, data: bytes, payload: list[memoryview] | None = None) -> int:
        """How many octets of ``data`` belong to it."""
        count = min(len(data), self.left)
        self.left -= count
        return count


class Endless:
    """Follows content that ends with the connection."""

    __slots__ = ()

    done = False

    def scan(self, data: bytes, payload: list[memoryview] | None = None) -> int:
        """All of it belongs to it."""
        return len(data)


Body = Counted | Chunked | Endless


NOTHING = Counted(0)


def make_body(octets: int) -> Body:
    """The object that follows content as ``Request.body`` and ``Response.body`` announce it."""
    if not octets:
        return NOTHING
    if octets == CHUNKED:
        return Chunked()
    return Endless() if octets == UNTIL_CLOSE else Counted(octets)


def take(buffer: bytearray, body: Body, content_only: bool = False) -> bytes:
    """Take out of a buffer what belongs to a body. Raises RemoteProtocolError."""
    if not buffer:
        return b""
    data = bytes(buffer)
    buffer.clear()
    return take_from(data, buffer, body, content_only)


def take_from(data: bytes, rest: bytearray, body: Body, content_only: bool = False) -> bytes:
    """What of ``data`` belongs to a body; what does not goes to ``rest``, which is empty. Raises RemoteProtocolError.

    ``content_only`` takes chunks apart.
    """
    pieces: list[memoryview] | None = [] if content_only else None
    end = body.scan(data, pieces)
    if end < len(data):
        rest += data[end:]
        data = data[:end]
    return data if pieces is None else b"".join(pieces)
