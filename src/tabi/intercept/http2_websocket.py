"""WebSocket on a stream of HTTP/2 (RFC 8441): its DATA frames are what a connection of its own is else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tabi.intercept.http2_stream import Stream
from tabi.intercept.websocket import WebSocket
from tabi.intercept.websocket_halves import Half, RecordedHalf
from tabi.policy.limits import DOWN, UP

PROTOCOL = b"websocket"
"""The value of :protocol."""


class StreamPort:
    """One direction of a stream: the `websocket_halves.Port` of its half."""

    __slots__ = ("direction", "half", "owed", "owner", "stream")

    def __init__(self, owner: StreamSocket, direction: int, half: Half) -> None:
        self.owner = owner
        self.stream = owner.stream
        self.direction = direction
        self.half = half
        self.owed = 0  # octets that were taken, and for which the sender may not send others yet
        half.port = self

    def receive(self, payload: bytes, end: bool) -> None:
        """Octets have come."""
        half = self.half
        if isinstance(half, RecordedHalf):  # they have gone on already
            half.look(payload)
            return
        self.owed += len(payload)
        half.feed(payload)
        if end:
            half.end()
        self.give_back()

    def give_back(self) -> None:
        """Have the sender send more, unless a hook, a turn or the receiver is waited for."""
        owed, stream = self.owed, self.stream
        if owed and self.half.ready and not stream.over and stream.waiting(self.direction) <= owed:
            self.owed = 0
            stream.consumed(self.direction, owed)

    # --- see `Port` ---

    def emit(self, data: bytes) -> None:
        """Send octets, as far as the receiver's window allows."""
        self.stream.send(self.direction, data)

    def emit_end(self) -> None:
        """Send the end."""
        self.stream.send(self.direction, b"", True)

    def later(self, callback: Callable[[], object]) -> None:
        """Call in another turn, if the stream is not over then."""
        self.owner.later(lambda: self.run(callback))

    def run(self, callback: Callable[[], object]) -> None:
        """Call, unless the stream is over."""
        if not self.stream.over:
            callback()
            self.give_back()

    def cut(self, error: str) -> None:
        """End the stream at both sides, behind what was emitted."""
        for direction in (UP, DOWN):
            self.stream.send(direction, b"", True)


class StreamSocket:
    """Both directions of a WebSocket on a stream.

    Args:
        socket: puts the messages together.
        stream: whose `Inspector` passes on what concerns it: `data`, `writable` and, at the end, `close`.
        later: has something called in another turn.
    """

    __slots__ = ("later", "ports", "socket", "stream")

    def __init__(self, socket: WebSocket, stream: Stream, later: Callable[[Callable[[], Any]], Any]) -> None:
        self.socket = socket
        self.stream = stream
        self.later = later
        self.ports = {UP: StreamPort(self, UP, socket.up), DOWN: StreamPort(self, DOWN, socket.down)}

    def begin(self) -> None:
        """Have content come here; to be called before the head of the answer goes on."""
        for direction, port in self.ports.items():
            if isinstance(port.half, RecordedHalf):
                self.stream.watch(direction)
            else:
                self.stream.take(direction)

    def data(self, direction: int, payload: bytes, end: bool) -> None:
        """See `Inspector`."""
        if not self.socket.over:
            self.ports[direction].receive(payload, end)

    def writable(self, direction: int) -> None:
        """See `Inspector`."""
        if not self.socket.over:
            self.ports[direction].give_back()

    def close(self) -> None:
        """The stream is over."""
        self.socket.close()
        self.ports.clear()
