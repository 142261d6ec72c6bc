"""What a fault does to the datagrams of one direction. The order is fixed: what throws all away, the MTU, loss,
corruption, the limit, duplication, bandwidth, latency. What reorders them stands behind all entries.

And an entry in one association, with both of its directions.
"""

from __future__ import annotations

import asyncio
import random

from tabi.distort.corruption import Flips
from tabi.distort.datagram_queue import DatagramQueue
from tabi.distort.draws import Bucket, Drawn
from tabi.distort.latency import Latency
from tabi.distort.losses import Losses
from tabi.policy.faults import Fault, Line
from tabi.policy.limits import DOWN, UP

Timed = tuple[float, bytes]
"""When a datagram comes, in seconds, and its payload."""


def acts_on_datagrams(fault: Fault | None) -> bool:
    """Whether a fault does anything to an association."""
    if fault is None:
        return False
    ends = fault.reset_after, fault.close_after, fault.refuse, fault.resolve
    return any(end is not None for end in ends) or fault.resolve_delay > 0 or any(map(touches, (fault.up, fault.down)))


def touches(line: Line) -> bool:
    """Whether a direction has a figure that counts for datagrams."""
    figures = line.latency, line.jitter, line.bandwidth, line.loss, line.duplicate, line.reorder, line.corrupt
    return any(figures) or line.mtu > 0 or line.blackhole or line.limit is not None or line.stall is not None


class DatagramLine:
    """One direction of one entry in one association.

    Args:
        line: the figures.
        dice: random numbers.
        bucket: of bandwidth that is shared; None: it has its own.
        since: when it began, by the clock of the association: `Line.stall` counts from there.
    """

    __slots__ = ("dice", "flips", "late", "left", "line", "losses", "queue", "stalled_at")

    def __init__(self, line: Line, dice: random.Random, bucket: Bucket | None = None, since: float = 0.0) -> None:
        self.line = line
        self.dice = dice
        self.losses = Losses(line.loss, line.burst, dice) if line.loss else None
        self.flips = Flips(line.corrupt, dice) if line.corrupt else None
        self.queue = DatagramQueue(line.bandwidth, line.queue, bucket) if line.bandwidth else None
        timed = line.latency or line.jitter
        self.late = Latency(line.latency, line.jitter, line.distribution, dice).draw if timed else None
        self.left = line.limit
        """Octets that may still pass; None: any."""
        self.begin(since)

    def begin(self, since: float) -> None:
        """Begin, or begin anew: `Line.stall` counts from then."""
        self.stalled_at = None if self.line.stall is None else since + self.line.stall

    @property
    def is_over(self) -> bool:
        """Whether its limit is reached."""
        return self.left == 0

    def pass_on(self, when: float, payload: bytes) -> list[Timed]:
        """What comes out of a datagram that comes at a time: nothing if it is lost, two if it is duplicated."""
        line, dice = self.line, self.dice
        if line.blackhole or (self.stalled_at is not None and when >= self.stalled_at):
            return []
        if line.mtu and len(payload) > line.mtu:
            return []
        if self.losses is not None and self.losses.next():
            return []
        if self.flips is not None:
            payload = self.flips.change(payload)
        if self.left is not None and not self.fits(len(payload)):
            return []
        found = []
        for _ in range(2 if line.duplicate and dice.random() < line.duplicate else 1):
            due = when if self.queue is None else self.queue.book(when, len(payload))
            if due is not None:
                found.append((due if self.late is None else due + self.late(), payload))
        return found

    def fits(self, octets: int) -> bool:
        """Count octets toward the limit: whether they pass. What does not fit whole is lost, and all behind it."""
        assert self.left is not None
        fits = 0 < self.left >= octets
        self.left = self.left - octets if fits else 0
        return fits

    def is_overtaken(self) -> bool:
        """Whether the next datagram is one that later ones overtake."""
        return self.line.reorder > 0 and self.dice.random() < self.line.reorder


class Acting:
    """An entry that an association was drawn for.

    Args:
        drawn: for it.
        since: the time of the association's clock.
    """

    __slots__ = ("counting", "drawn", "ending", "fault", "lines", "since", "timers")

    def __init__(self, drawn: Drawn, since: float) -> None:
        entry, fault = drawn.entry, drawn.entry.fault
        self.drawn = drawn
        self.fault = fault
        """That of the entry, until it has another one."""
        self.ending = False
        """Whether its limit is reached."""
        self.timers: list[asyncio.TimerHandle] = []
        self.counting: asyncio.TimerHandle | None = None
        """Calls `FaultyAssociation.count`."""
        self.since: float | None = None
        """Since when it acts without a pause."""
        up, down = entry.buckets if fault.shared else (None, None)
        self.lines = {
            "up": DatagramLine(fault.up, drawn.random(UP), up, since),
            "down": DatagramLine(fault.down, drawn.random(DOWN), down, since),
        }

    @property
    def end(self) -> tuple[float, str] | None:
        """After how many seconds it ends the association, and how; None if it does not."""
        fault = self.fault
        ends = (fault.reset_after, "reset"), (fault.close_after, "closed")
        return min([(seconds, how) for seconds, how in ends if seconds is not None], default=None)

    @property
    def stalls(self) -> bool:
        """Whether datagrams pass for a time only."""
        return any(line.line.stall for line in self.lines.values())

    def begin(self, now: float) -> None:
        """It begins to act, for the first time or again."""
        self.since = now
        for line in self.lines.values():
            line.begin(now)
