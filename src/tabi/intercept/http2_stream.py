"""Streams of HTTP/2 as the frame relay keeps them, and what an inspector may do with each.

A stream has two halves, one for each direction. Numbers of a stream may differ on both sides: a request that waits for
a hook is opened at the server later than those behind it, and numbers only grow (RFC 9113 section 5.1.1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from tabi.errors import H2Error
from tabi.policy.limits import UP
from tabi.wire.h2 import ErrorCode, H2Request, encode_request, encode_response
from tabi.wire.hpack import Field

if TYPE_CHECKING:
    from tabi.intercept.http2 import FrameRelay

WATCHED, TAKEN, HELD, ENDED, CUT = 1, 2, 4, 8, 16
"""What is so of a half: the inspector sees its content; gets it, and sends other; nothing of it goes on; its sender has
sent everything; its sender's octets are thrown away, since the request is answered here."""

Item = tuple["memoryview | list[Field]", bool]
"""What waits in a half: content or fields, and whether the stream ends there."""


class Hold(Enum):
    """The one value HOLD."""

    HOLD = 0


HOLD = Hold.HOLD


class Inspector(Protocol):
    """What a frame relay shows its streams to. Called inside the loop: it must not wait, nor raise.

    What is given back is sent on: None for what came. HOLD keeps it back, with all that follows in its direction, until
    `Stream.send_request` or `Stream.send_response`; or a method of `Stream` was called that makes it void.
    """

    def request(self, stream: Stream, request: H2Request, end: bool) -> H2Request | Hold | None:
        """A request has come. A pushed one can only be looked at. ``end``: it has no content."""

    def response(
        self, stream: Stream, status: int, fields: list[Field], end: bool
    ) -> tuple[int, list[Field]] | Hold | None:
        """The head of a final response has come."""

    def data(self, stream: Stream, direction: int, payload: bytes, end: bool) -> None:
        """Content of a half that is watched, which goes on, or of one that is taken, which does not.

        Of the latter the sender may send more when `Stream.consumed` was called.
        """

    def trailers(self, stream: Stream, direction: int, fields: list[Field]) -> list[Field] | None:
        """Trailers of a half that is watched or taken. Of the latter they go behind what is sent in its place."""

    def writable(self, stream: Stream, direction: int) -> None:
        """All of what was given to `Stream.send` is on its way."""

    def ended(self, stream: Stream, error: str | None) -> None:
        """The stream is over; ``error`` says why before its end. Called once for each."""


class Over:
    """What the halves of a stream that is over still know of it: they would be a cycle else."""

    over = finished = True
    flags = to = id = 0


OVER: Any = Over()


class Half:
    """One direction of a stream.

    Attributes:
        id, to: the stream's number at its sender and at its receiver; 0 where it is not open.
        window: octets that the receiver takes.
        credit: octets that the sender may send; known where the direction is managed.
        size: octets that were taken from the sender and are not on their way.
        owed: octets that the receiver has added to its window while the stream was not open at the sender.
        begun: whether a final response has come.
        finished: whether the receiver has everything.
    """

    __slots__ = (
        "__weakref__",
        "begun",
        "credit",
        "finished",
        "flags",
        "id",
        "other",
        "owed",
        "queue",
        "size",
        "stream",
        "to",
        "trailers",
        "window",
    )

    other: Half

    def __init__(self, stream: Stream, id: int, to: int, window: int) -> None:
        self.stream = stream
        self.id = id
        self.to = to
        self.window = window
        self.flags = self.credit = self.size = self.owed = 0
        self.queue: deque[Item] | None = None
        self.trailers: list[Field] | None = None
        self.begun = self.finished = False


class Stream:
    """One request and its response.

    Attributes:
        id: its number at the client.
        method: of the request.
        pushed: whether the server has promised it.
        over: whether it has ended; nothing can be done with it then.
        flow: the inspector's own.
    """

    __slots__ = ("__weakref__", "down", "flow", "id", "method", "over", "pushed", "relay", "up")

    def __init__(self, relay: FrameRelay, id: int, method: bytes, pushed: bool = False) -> None:
        self.relay = relay
        self.id = id
        self.method = method
        self.pushed = pushed
        self.over = False
        self.flow: Any = None
        opened = id if pushed else 0
        self.up = up = Half(self, id, opened, relay.up.initial)
        self.down = down = Half(self, opened, id, relay.down.initial)
        up.other, down.other = down, up

    def __repr__(self) -> str:
        return f"<Stream {self.id}>"

    def half(self, direction: int) -> Half:
        """The half of a direction, UP or DOWN."""
        return self.up if direction == UP else self.down

    @property
    def answered(self) -> bool:
        """Whether the client has the head of an answer, or it is on its way."""
        return self.down.begun and not self.down.flags & HELD

    def holds(self, direction: int) -> bool:
        """Whether the head of a half is held."""
        return bool(self.half(direction).flags & HELD)

    # --- what an inspector may do; nothing of it does anything once the stream is over ---

    def send_request(self, request: H2Request | None = None, end: bool | None = None) -> None:
        """Send a request on that was held, or another one; ``end``: whether content follows, if that has changed."""
        self.release(self.up, None if request is None else encode_request(request), end)

    def send_response(self, head: tuple[int, list[Field]] | None = None, end: bool | None = None) -> None:
        """Send a response's head on that was held, or another one; else as `send_request`."""
        self.release(self.down, None if head is None else encode_response(*head), end)

    def release(self, half: Half, fields: list[Field] | None, end: bool | None) -> None:
        """Let go what was held in a half."""
        if not self.over:
            with self.relay.turn():
                (self.relay.up if half is self.up else self.relay.down).let_go(half, fields, b"", end)

    def watch(self, direction: int, wanted: bool = True) -> None:
        """Have `Inspector.data` see the content of a half, or no longer."""
        half = self.half(direction)
        half.flags = half.flags | WATCHED if wanted else half.flags & ~WATCHED

    def take(self, direction: int) -> None:
        """Have the inspector get the content of a half, also what has come behind a head that is held, and send other
        content, and its end, with `send`."""
        half = self.half(direction)
        if self.over or half.finished or half.flags & TAKEN:
            return
        half.flags |= TAKEN
        with self.relay.turn():
            self.relay.directions[direction].take_over(half)

    def leave(self, direction: int) -> None:
        """Have the content of a half that was taken pass again, behind what was sent in its place."""
        half = self.half(direction)
        if self.over or not half.flags & TAKEN:
            return
        half.flags &= ~TAKEN
        if half.flags & ENDED:
            self.send(direction, b"", True)

    def consumed(self, direction: int, octets: int) -> None:
        """Of what was taken so much needs no memory any more: the sender may send as much."""
        half = self.half(direction)
        if not self.over and octets:
            with self.relay.turn():
                self.relay.directions[direction].give(half, octets)

    def send(self, direction: int, payload: bytes, end: bool = False) -> None:
        """Send content of one's own in a half that is taken, or of an answer, as the receiver's window allows."""
        half = self.half(direction)
        if self.over or half.finished:
            return
        with self.relay.turn():
            self.relay.directions[direction].send(half, payload, end)

    def waiting(self, direction: int) -> int:
        """Octets of a half that were taken or given to `send`, and are not on their way."""
        return self.half(direction).size

    def answer(self, status: int, fields: list[Field], body: bytes = b"", end: bool = True) -> None:
        """Answer in the server's place, which never sees the request, or gets RST_STREAM. Not after `answered`.

        Args:
            end: whether ``body`` is all; else `send` sends the rest.
        """
        if not self.over and not self.pushed:
            with self.relay.turn():
                self.relay.answer(self, encode_response(status, fields), body, end)

    def send_interim(self, status: int) -> None:
        """Send an interim response of ours, such as 100, before there is a final one."""
        if not self.over and not self.down.begun:
            with self.relay.turn():
                self.relay.down.write_fields(self.down, encode_response(status, []), False)

    def reset(self, error: str, code: int = ErrorCode.CANCEL) -> None:
        """End it at both sides."""
        if not self.over:
            with self.relay.turn():
                self.relay.reset(self, error, code, code)

    def forget(self) -> None:
        """It is over."""
        self.over = True
        for half in (self.up, self.down):
            half.stream = half.other = OVER
            half.queue = None


class Budget:
    """How often something may happen that costs its sender nothing: ``burst`` times at once, then ``rate`` a second."""

    __slots__ = ("burst", "clock", "count", "rate", "since", "spared")

    def __init__(self, burst: int, rate: float, clock: Callable[[], float]) -> None:
        self.burst = burst
        self.rate = rate
        self.clock = clock
        self.count = self.spared = 0
        self.since = clock()

    def spend(self, what: str, spared: int = 0) -> None:
        """It has happened once more.

        Args:
            spared: for so many there was a reason, since the beginning.

        Raises:
            H2Error: it happens too often.
        """
        self.count += 1
        if self.count >= self.burst:
            now = self.clock()
            if (now - self.since) * self.rate + spared - self.spared < self.count:
                raise H2Error(f"too many {what}", ErrorCode.ENHANCE_YOUR_CALM)
            self.count, self.since, self.spared = 0, now, spared
