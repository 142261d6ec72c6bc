"""What was really sent to a destination: the hello of TLS, and how HTTP/2 begins. Read from the octets themselves.

The fingerprint of HTTP/2 is written as Shuster, Segal, Rosenberg and Bekerman do (Akamai, 2017): SETTINGS in their
order, what the window of the connection grows by, PRIORITY frames, and the order of pseudo-header fields:

    1:65536;2:0;4:6291456;6:262144|15663105|0|m,a,s,p
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

from tabi.errors import H2Error
from tabi.intercept.http2 import FrameRelay
from tabi.policy.limits import UP
from tabi.wire.h2 import (
    CONTINUATION,
    END_HEADERS,
    HEAD_SIZE,
    HEADERS,
    PREFACE,
    PRIORITY,
    SETTINGS,
    WINDOW_UPDATE,
    decode_settings,
    read_head,
    split_headers,
)
from tabi.wire.hpack import Decoder

MOST = 1 << 17
"""Octets in which a client of HTTP/2 has begun a request; else there is no fingerprint."""


class WatchedContext:
    """A context whose hello is kept.

    Args:
        context: of a client.

    Attributes:
        sent: the records of the hello.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.sent = b""

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *, server_hostname: str | None = None
    ) -> ssl.SSLObject:
        """As that of `ssl.SSLContext`; the handshake has begun."""
        tls = self.context.wrap_bio(incoming, outgoing, server_hostname=server_hostname)
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        self.sent = outgoing.read()
        outgoing.write(self.sent)
        return tls


class Http2Sent:
    """Reads what is sent to a server of HTTP/2, up to the first request.

    Attributes:
        text: the fingerprint; None as long as it is not known.
        over: whether there is nothing more to read.
    """

    __slots__ = ("block", "buffer", "missing", "octets", "over", "priorities", "settings", "text", "window")

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.missing = len(PREFACE) + HEAD_SIZE  # so many octets must be there to know more
        self.octets = 0  # that have come
        self.block: bytes | None = None
        self.settings: list[str] | None = None
        self.window = 0
        self.priorities: list[str] = []
        self.text: str | None = None
        self.over = False

    def feed(self, octets: bytes) -> None:
        """Take octets that are sent."""
        buffer = self.buffer
        buffer += octets
        self.octets += len(octets)
        if len(buffer) < self.missing:
            return
        at = len(PREFACE) if self.octets == len(buffer) else 0
        try:
            while not self.over:
                self.missing = HEAD_SIZE
                if len(buffer) - at < HEAD_SIZE:
                    break
                length, kind, flags, id = read_head(buffer, at)
                end = at + HEAD_SIZE + length
                if end > len(buffer):
                    self.missing = HEAD_SIZE + length
                    break
                self.take(kind, flags, id, bytes(buffer[at + HEAD_SIZE : end]))
                at = end
        except H2Error:
            self.stop()
        del buffer[:at]
        if self.octets > MOST:
            self.stop()

    def take(self, kind: int, flags: int, id: int, payload: bytes) -> None:
        """A frame has been sent. Raises H2Error."""
        if kind == HEADERS:
            self.block = split_headers(payload, flags)[1]
        elif kind == CONTINUATION and self.block is not None:
            self.block += payload
        elif kind == SETTINGS and self.settings is None:
            self.settings = [f"{setting}:{value}" for setting, value in decode_settings(payload)]
        elif kind == WINDOW_UPDATE and id == 0 and not self.window:
            self.window = int.from_bytes(payload, "big") & 0x7FFFFFFF
        elif kind == PRIORITY:
            depends = int.from_bytes(payload[:4], "big")
            self.priorities.append(f"{id}:{depends >> 31}:{depends & 0x7FFFFFFF}:{payload[4] + 1}")
        if self.block is not None and flags & END_HEADERS:
            self.end(self.block)

    def end(self, block: bytes) -> None:
        """The first request is there. Raises H2Error."""
        names = [name for name, _ in Decoder().decode(block) if name.startswith(b":")]
        order = ",".join(chr(name[1]) for name in names)
        window = str(self.window) if self.window else "00"
        self.text = "|".join((";".join(self.settings or ()), window, ",".join(self.priorities) or "0", order))
        self.stop()

    def stop(self) -> None:
        """Read no more."""
        self.over = True
        self.buffer = bytearray()


class WatchedRelay(FrameRelay):
    """A frame relay that can tell how the connection to the server began. Arguments as `FrameRelay`."""

    sent: Http2Sent | None = None
    tell: Callable[[str], object]

    def watch(self, tell: Callable[[str], object]) -> None:
        """Call ``tell`` with the fingerprint, once it is known."""
        self.sent, self.tell = Http2Sent(), tell

    def take(self, direction: int) -> bytes:
        """See `FrameRelay.take`."""
        octets = super().take(direction)
        sent = self.sent
        if sent is not None and direction == UP and octets:
            sent.feed(octets)
            if sent.over:
                self.sent = None
                if sent.text is not None:
                    self.tell(sent.text)
        return octets
