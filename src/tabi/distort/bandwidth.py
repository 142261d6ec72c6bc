"""Bandwidth: octets come as fast as a line of so many octets per second would bring them.

A piece goes on when its last octet would have come. What is due within `SOON` goes on at once and the line is taken as
busy until then, so that a fast line costs no timer for each piece; what a timer is late by is made up for.
"""

from __future__ import annotations

from tabi.distort.draws import Bucket
from tabi.distort.keeping import PIECE, Keeping
from tabi.distort.memory import Memory

SOON = 0.002
"""Seconds before its time that a piece may go on."""

PIECE_SECONDS = 0.02
"""Seconds of the line that a piece takes, so that a slow line brings small pieces."""

SEGMENT, SEGMENT_SECONDS = 1460, 0.1
"""Octets that a piece has at least, as long as they take no longer than this: a segment of Ethernet, and seconds."""

CREDIT = 0.05
"""Seconds of the line that a sender may catch up on, for what timers were late by."""


class Bandwidth(Keeping):
    """Passes so many octets per second.

    Args:
        rate: octets per second.
        bucket: of a line that several connections share; None: it has its own.
        memory: what all stages hold.
    """

    __slots__ = ("booked", "bucket", "due", "piece", "rate")

    rest: bytearray

    def __init__(self, rate: float, bucket: Bucket | None = None, memory: Memory | None = None) -> None:
        super().__init__(memory)
        self.rate = rate
        self.bucket = Bucket() if bucket is None else bucket
        least = min(SEGMENT, max(1, int(min(rate * SEGMENT_SECONDS, SEGMENT))))
        self.piece = int(min(max(rate * PIECE_SECONDS, least), PIECE))
        self.booked = 0
        """The first octets of ``rest``, for which the line is taken until ``due``."""
        self.due = 0.0

    def room(self, most: int) -> int:
        """See `Stage.room`: one piece at a time."""
        return 0 if self.held else super().room(min(most, self.piece))

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`. What need not wait is not kept."""
        if self.held or len(data) > self.piece or self.waiting or self.is_blocked:
            super().receive(data)
            return
        assert self.flow is not None
        self.book(len(data))
        seconds = self.due - self.flow.loop.time()
        if seconds <= SOON:
            self.booked = 0
            self.emit(data)
            return
        self.rest += data
        self.hold(len(data))
        self.wait(seconds)

    def book(self, count: int) -> None:
        """Take the line for so many octets."""
        assert self.flow is not None
        now, free_at = self.flow.loop.time(), self.bucket.free_at
        self.bucket.free_at = self.due = (free_at if free_at > now - CREDIT else now) + count / self.rate
        self.booked = count

    def step(self) -> float:
        """See `Keeping.step`."""
        assert self.flow is not None
        if not self.booked:
            self.book(min(len(self.rest), self.piece))
        seconds = self.due - self.flow.loop.time()
        if seconds > SOON:
            return seconds
        count, self.booked = self.booked, 0
        self.emit(self.take(count))
        return 0.0

    def forget(self) -> None:
        """See `Keeping.forget`."""
        super().forget()
        self.booked = 0
