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


class Content:
    """The content of a message, read from one side.

    Args:
        stream: comes from there.
        buffer: what was read from it behind the head; gets what was read behind the content.
        length: octets of content, CHUNKED or UNTIL_CLOSE.
        wanted: whether anybody wants to see what it carries, without the chunks around it.

    Attributes:
        unchunked: it goes on without the chunks around it.
        size: octets that it carried up to now, where they are ``wanted``.
        held: what was read for a hook, as it came.
        payload: what that carries.
    """

    __slots__ = ("body", "buffer", "held", "payload", "size", "stream", "unchunked", "wanted")

    def __init__(self, stream: Stream, buffer: bytearray, length: int, wanted: bool = False) -> None:
        self.stream = stream
        self.buffer = buffer
        self.body: Body = make_body(length) if length else NOTHING
        self.wanted = wanted
        self.unchunked = False
        self.size = 0
        self.held: list[bytes] = []
        self.payload = bytearray()

    @property
    def done(self) -> bool:
        """Whether all of it was read."""
        return self.body.done

    def waiting(self) -> tuple[bytes, bytes]:
        """What was read already behind the head, as `next` gives it; empty if that is nothing."""
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
        if self.buffer:
            await reactor.next_turn(stream)
            return self.waiting()
        if reactor.late():
            await reactor.next_turn(stream)
            stream.check()
        data = await stream.receive(READ_SIZE)
        if data:
            return self.take(data)
        body = self.body
        if not isinstance(body, Endless) or getattr(stream.sock, "cut", False):
            raise RemoteProtocolError("the connection ended in the middle of the content")
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
            self.size += end
            return data, data
        payload: list[memoryview] | None = [] if self.wanted or self.unchunked else None
        onward: list[Any] = []
        end = body.scan(data, payload, onward, STEPS)
        carried = b"".join(payload) if payload else b""
        self.size += len(carried)
        whole = len(onward) == 1 and len(onward[0]) == len(data)
        octets = carried if self.unchunked else data if whole else b"".join(onward)
        self.buffer += data[end:]
        return octets, carried

    async def read_all(self, limit: int) -> bytes:
        """Hold all of it back; returns what it carries. See `flow.Reader`.

        Raises:
            TooLarge: it is larger than ``limit``. What was read goes on with the rest.
            As `next`.
        """
        self.wanted = True
        while not self.body.done:
            if len(self.payload) > limit:
                raise TooLarge(f"the content has more than {limit} octets")
            octets, carried = await self.next()
            self.held.append(octets)
            self.payload += carried
        if len(self.payload) > limit:
            raise TooLarge(f"the content has more than {limit} octets")
        return bytes(self.payload)

    async def discard(self) -> None:
        """Read it to the end. Errors as `next`."""
        self.held.clear()
        while not self.body.done:
            await self.next()
