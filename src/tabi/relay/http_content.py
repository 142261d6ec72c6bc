"""The content of HTTP messages while it passes: where it ends, and which octets belong to it."""

from __future__ import annotations

from typing import Any

from tabi.wire.http import CHUNKED, UNTIL_CLOSE, Chunked

STEPS = 500
"""Chunks and their lines that are read in a row, in 1 to 2 ms; the rest waits for the next turn of the loop."""


class Counted:
    """Follows content of a known length; see `Chunked`."""

    __slots__ = ("left",)

    def __init__(self, octets: int) -> None:
        self.left = octets

    @property
    def done(self) -> bool:
        """Whether all of it was seen."""
        return not self.left

    def scan(self, data: bytes) -> int:
        """How many octets of ``data`` belong to it."""
        count = min(len(data), self.left)
        self.left -= count
        return count


class Endless:
    """Follows content that ends with the connection."""

    __slots__ = ()

    done = False

    def scan(self, data: bytes) -> int:
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
    """What of ``data`` belongs to a body, as it goes on; what does not goes to ``rest``, which is empty.

    While the body is not done, ``rest`` has what there was no time for: see `STEPS`.

    ``content_only`` takes chunks apart.

    Raises:
        RemoteProtocolError: it is not chunked.
    """
    if isinstance(body, Chunked):
        pieces: list[Any] = []
        end = body.scan(data, pieces, None, STEPS) if content_only else body.scan(data, None, pieces, STEPS)
        taken = data if len(pieces) == 1 and len(pieces[0]) == len(data) else b"".join(pieces)
    else:
        end = body.scan(data)
        taken = data if end == len(data) else data[:end]
    rest += data[end:]
    return taken
