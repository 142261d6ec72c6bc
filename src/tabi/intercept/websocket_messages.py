"""Messages of WebSocket: put together from frames, with their compression (RFC 7692) undone, and compressed again."""

from __future__ import annotations

import zlib

from tabi.errors import RemoteProtocolError
from tabi.wire.websocket import OPCODE, RSV, RSV1, Compression

TAIL = b"\0\0\xff\xff"
"""The end of a compressed message, which is not sent (RFC 7692 section 7.2.1)."""

FINAL_BLOCKS = 16
"""Deflate streams that a piece of a message may consist of: one that ends is followed by another."""

COMPRESSED = 1 << 18
"""Octets up to which a message is compressed again: 3 ms. Longer ones are sent as they are, which is always allowed."""

LEVEL, MEMORY = 1, 5
"""Of compression: the fastest, with 150 KiB for each direction that refers to earlier messages."""


class MessageReader:
    """Puts the messages of one direction together. No I/O.

    Args:
        compression: of the direction; None: nothing is compressed.
        limit: octets of a message that are kept.

    Attributes:
        opcode: of the message under way, 0 between two.
        compressed: whether it came compressed.
        content: what is known of it.
        over: whether that is not all, since it is longer than the limit.
        blind: whether compressed messages cannot be read any more, since they refer to one that was too long.
    """

    __slots__ = ("blind", "compressed", "compression", "content", "inflater", "limit", "opcode", "over")

    def __init__(self, compression: Compression | None, limit: int) -> None:
        self.compression = compression
        self.limit = limit
        self.opcode = 0
        self.compressed = self.over = self.blind = False
        self.content = bytearray()
        self.inflater: zlib._Decompress | None = None

    def begin(self, first: int) -> None:
        """A frame begins that is no control frame; ``first`` is its first octet.

        Raises:
            RemoteProtocolError: no such frame may come now.
        """
        opcode, reserved = first & OPCODE, first & RSV
        if not opcode:
            if not self.opcode:
                raise RemoteProtocolError("a WebSocket frame that goes on with no message")
            if reserved:
                raise RemoteProtocolError("a WebSocket frame with reserved bits within a message")
            return
        if self.opcode:
            raise RemoteProtocolError("a WebSocket message within another")
        if reserved and (reserved != RSV1 or self.compression is None):
            raise RemoteProtocolError("a WebSocket frame with reserved bits that were not agreed on")
        self.opcode = opcode
        self.compressed = reserved > 0
        self.over = self.compressed and self.blind

    def add(self, payload: bytes) -> None:
        """Octets of the message have come, unmasked. Raises RemoteProtocolError."""
        if self.over:
            return
        self.content += self.inflate(payload) if self.compressed else payload
        if len(self.content) > self.limit:
            self.give_up()
            del self.content[self.limit :]

    def end(self) -> bytes:
        """The message is whole: what is known of it; `over` says whether it is all. Raises RemoteProtocolError."""
        if self.compressed:
            self.add(TAIL)
            assert self.compression is not None
            if not self.compression.takeover:
                self.inflater = None
        self.opcode = 0
        content = bytes(self.content)
        self.content.clear()
        return content

    def give_up(self) -> None:
        """Read no more of this message; nor of any that refers to it."""
        self.over = True
        if self.compressed:
            assert self.compression is not None
            self.inflater, self.blind = None, self.compression.takeover

    def inflate(self, payload: bytes) -> bytes:
        """Decompress octets, up to one more than the limit. Raises RemoteProtocolError."""
        room = self.limit + 1 - len(self.content)
        out = b""
        try:
            for _ in range(FINAL_BLOCKS):
                if self.inflater is None or self.inflater.eof:
                    self.inflater = zlib.decompressobj(-zlib.MAX_WBITS)
                out += self.inflater.decompress(payload, room - len(out))
                payload = self.inflater.unused_data
                if not payload or len(out) >= room:
                    return out
        except zlib.error as exc:
            raise RemoteProtocolError("a WebSocket message that cannot be decompressed") from exc
        raise RemoteProtocolError("a WebSocket message of too many deflate streams")


class Deflater:
    """Compresses messages that a hook has changed, and those behind them.

    A compressed message may refer to those before it as its sender has sent them. Once the receiver got another one, or
    none, it cannot follow: from then on all that come compressed are compressed here, and refer only to each other.

    Attributes:
        differs: whether the receiver's messages differ from the sender's.
    """

    __slots__ = ("compression", "compressor", "differs")

    def __init__(self, compression: Compression | None) -> None:
        self.compression = compression or Compression(False)
        self.compressor: zlib._Compress | None = None
        self.differs = False

    def note_change(self) -> None:
        """The receiver does not get a compressed message as it was sent."""
        self.differs = self.compression.takeover

    def compress(self, content: bytes) -> bytes | None:
        """A payload for a frame with RSV1; None: send it uncompressed."""
        takeover, bits = self.compression
        if bits < 9 or len(content) > COMPRESSED:  # zlib has no window of 8 bits
            return None
        if not content:
            return b"\0"
        compressor = self.compressor or zlib.compressobj(LEVEL, wbits=-bits, memLevel=MEMORY)
        if takeover:
            self.compressor = compressor
        return (compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH))[: -len(TAIL)]
