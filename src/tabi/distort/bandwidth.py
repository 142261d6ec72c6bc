"""Bandwidth: octets come as fast as a line of so many octets per second would bring them.

A chunk goes on when its last octet would have come. What is due within `SOON` goes on at once and the line is taken as
busy until then, so that a fast line costs no timer for each chunk; what a timer is late by is made up for.
"""

from __future__ import annotations

from tabi.distort.draws import Bucket
from tabi.relay.stage import Stage

SOON = 0.002
"""Seconds before its time that a chunk may go on."""

PIECE_SECONDS = 0.02
"""Seconds of the line that one read takes at most, so that a slow line brings small pieces."""

SMALLEST, LARGEST = 1460, 1 << 18
"""Octets of a read: a segment of Ethernet, and what a stage holds."""

CREDIT = 0.05
"""Seconds of the line that a sender may catch up on, for what timers were late by."""


class Bandwidth(Stage):
    """Passes so many octets per second.

    Args:
        rate: octets per second.
        bucket: of a line that several connections share; None: it has its own.
    """

    __slots__ = ("bucket", "due", "piece", "rate", "waiting")

    def __init__(self, rate: float, bucket: Bucket | None = None) -> None:
        super().__init__()
        self.rate = rate
        self.bucket = Bucket() if bucket is None else bucket
        self.piece = int(min(max(rate * PIECE_SECONDS, SMALLEST), LARGEST))
        self.waiting: bytes | None = None
        self.due = 0.0

    def room(self, most: int) -> int:
        """See `Stage.room`: one piece at a time."""
        return 0 if self.held else min(most, self.piece)

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        if self.waiting is not None:  # a stage before has emitted more
            self.waiting += data
            self.held += len(data)
            self.due = self.book(len(data))
            return
        due = self.book(len(data))
        assert self.flow is not None
        if due <= self.flow.loop.time() + SOON:
            self.emit(data)
            return
        self.waiting, self.due = data, due
        self.held += len(data)
        self.call_at(due, self.go)

    def book(self, count: int) -> float:
        """Take the line for so many octets: until when."""
        assert self.flow is not None
        earliest = self.flow.loop.time() - CREDIT
        free_at = self.bucket.free_at
        self.bucket.free_at = due = (free_at if free_at > earliest else earliest + CREDIT) + count / self.rate
        return due

    def go(self) -> None:
        """Pass on what is due."""
        assert self.flow is not None
        if self.due > self.flow.loop.time() + SOON:  # more has come
            self.call_at(self.due, self.go)
            return
        self.flush()
        if self.ended:
            self.emit_end()

    def receive_end(self) -> None:
        """See `Stage.receive_end`."""
        if self.waiting is None:
            self.emit_end()

    def flush(self) -> None:
        """See `Stage.flush`."""
        data, self.waiting, self.held = self.waiting, None, 0
        if data is not None:
            self.emit(data)
