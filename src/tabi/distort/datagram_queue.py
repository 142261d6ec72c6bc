"""Bandwidth of datagrams: a line of so many octets per second behind a queue. What finds no room in it is lost."""

from __future__ import annotations

from tabi.distort.draws import Bucket

QUEUE_SECONDS = 0.2
"""Seconds of the line that wait where nothing else is said."""

LEAST_QUEUE = 3000
"""Octets that wait in any case where nothing else is said: two datagrams of Ethernet."""


class DatagramQueue:
    """Says when each datagram has passed a line.

    Args:
        rate: octets of payload per second.
        queue: octets that wait at most; 0: what the line carries in QUEUE_SECONDS, LEAST_QUEUE at least.
        bucket: of a line that several associations share; None: it has its own.
    """

    __slots__ = ("bucket", "queue", "rate")

    def __init__(self, rate: float, queue: int = 0, bucket: Bucket | None = None) -> None:
        self.rate = rate
        self.queue = queue or max(LEAST_QUEUE, rate * QUEUE_SECONDS)
        self.bucket = Bucket() if bucket is None else bucket

    def book(self, when: float, octets: int) -> float | None:
        """When a datagram that comes at a time has passed; None: it is lost. An idle line takes one of any length."""
        free_at = self.bucket.free_at
        waits = free_at - when
        if waits <= 0:
            free_at = when
        elif waits * self.rate + octets > self.queue + 0.5:  # what is waited for is not exact
            return None
        self.bucket.free_at = due = free_at + octets / self.rate
        return due
