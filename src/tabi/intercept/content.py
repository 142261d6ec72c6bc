"""The content of one HTTP/1 message while it passes: as it came, what it carries, and all of it for a hook."""

from __future__ import annotations

from typing import Any

from tabi.errors import RemoteProtocolError
from tabi.intercept.codings import TooLarge
from tabi.net.stream import Stream
from tabi.relay.http_content import NOTHING, STEPS, Body, Endless, make_body
from tabi.wire.http_body import Chunked

READ_SIZE = 1 << 16
"""Octets of one read."""

AROUND = 8
"""Octets that a hook's content may have around each of its own, at most: chunks of one octet have 5."""


class Content:
    """The content of a message, read from one side.

    Args:
        stream: comes from there.
        buffer: what was read from it behind the head; gets what was read behind the content.
        length: octets of content, CHUNKED or UNTIL_CLOSE.
        wanted: whether anybody wants to see what it carries, without the chunks around it.

    Attributes:
        unchunked: it goes on without the chunks around it.
        cut: it goes on until the connection ends, and that end is not one that TLS vouches for.
        held: what was read for a hook, as it came.
        payload: what that carries.
    """

    __slots__ = ("body", "buffer", "cut", "fault", "held", "payload", "stream", "unchunked", "wanted")

    def __init__(self, stream: Stream, buffer: bytearray, length: int, wanted: bool = False) -> None:
        self.stream = stream
        self.buffer = buffer
        self.body: Body = make_body(length) if length else NOTHING
        self.wanted = wanted
        self.unchunked = self.cut = False
        self.fault: RemoteProtocolError | None = None
        self.held = bytearray()
        self.payload = bytearray()

    @property
    def done(self) -> bool:
        """Whether all of it was read."""
        return self.body.done

    def waiting(self) -> tuple[bytes, bytes]:
        """What was read already behind the head, as `next` gives it; empty if that is nothing.

        Raises RemoteProtocolError as `next`.
        """
        if self.fault is not None:
            raise self.fault
        if self.body.done or not self.buffer:
            return b"", b""
        data = bytes(self.buffer)
        self.buffer.clear()
        return self.take(data)

    async def next(self) -> tuple[bytes, bytes]:
        """More of it: the octets as they came, and what they carry. May be empty before it is done.

        Raises:
            RemoteProtocolError: it is not what its head says, or ended before that.
            OSError: as `Stream.receive`.
        """
        stream = self.stream
        reactor = stream.reactor
        if self.fault is not None:  # a hook was told, and the message has gone on
            raise self.fault
        if self.buffer:
            await reactor.next_turn(stream)
            return self.waiting()
        if reactor.late():
            await reactor.next_turn(stream)
            stream.check()
        data = await stream.receive(READ_SIZE)
        if data:
            return self.take(data)
        if not isinstance(self.body, Endless):
            self.fault = RemoteProtocolError("the connection ended in the middle of the content")
            raise self.fault
        self.cut = getattr(stream.sock, "cut", False)
        self.body = NOTHING
        return b"", b""

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """What of ``data`` belongs to it; the rest goes to the buffer. Raises RemoteProtocolError."""
        body = self.body
        if not isinstance(body, Chunked):
            end = body.scan(data)
            if end < len(data):
                self.buffer += data[end:]
                data = data[:end]
            return data, data
        payload: list[memoryview] | None = [] if self.wanted or self.unchunked else None
        onward: list[Any] = []
        try:
            end = body.scan(data, payload, onward, STEPS)
        except RemoteProtocolError as exc:
            self.fault = exc
            raise
        carried = b"".join(payload) if payload else b""
        whole = len(onward) == 1 and len(onward[0]) == len(data)
        octets = carried if self.unchunked else data if whole else b"".join(onward)
        self.buffer += data[end:]
        return octets, carried

    async def read_all(self, limit: int) -> bytes:
        """Hold all of it back; returns what it carries. See `flow.Reader`.

        Raises:
            TooLarge: it is larger than ``limit``, or much larger than what it carries. What was read goes on with the
                rest.
            As `next`.
        """
        self.wanted = True
        while len(self.payload) <= limit and len(self.held) <= AROUND * limit + READ_SIZE:
            if self.body.done:
                return bytes(self.payload)
            octets, carried = await self.next()
            self.held += octets
            self.payload += carried
        raise TooLarge(f"the content has more than {limit} octets")

    async def discard(self, limit: int | None = None) -> bool:
        """Read it to the end, or until more than ``limit`` octets were read; whether it is done. Errors as `next`."""
        self.held.clear()
        size = 0
        while not self.body.done and (limit is None or size <= limit):
            octets, _ = await self.next()
            size += len(octets)
        return self.body.done
