"""Deadlines for many things that may all wait equally long: a queue and one timer.

`asyncio.timeout` costs 4 us and a heap entry for each use. All handshakes have the same limit, so the first to begin is
the first to end: a dict in the order of insertion is the whole structure, and the timer stands for its head only.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol


class Expirable(Protocol):
    """What can run out of time."""

    def expire(self) -> None:
        """Called once, when the time is over. Must not raise."""


class Deadlines:
    """All deadlines of one length.

    Args:
        loop: whose timer is used.
        seconds: how long each may take.
    """

    __slots__ = ("loop", "pending", "seconds", "timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self.seconds = seconds
        self.pending: dict[Expirable, float] = {}
        self.timer: asyncio.TimerHandle | None = None

    def start(self, thing: Expirable) -> None:
        """Give ``thing`` its time from now. It stays referenced until `stop` or its end."""
        self.pending[thing] = monotonic() + self.seconds
        if self.timer is None:
            self.timer = self.loop.call_later(self.seconds, self.tick)

    def stop(self, thing: Expirable) -> None:
        """It has done in time. Harmless if it was not waiting."""
        self.pending.pop(thing, None)

    def left(self, thing: Expirable) -> float:
        """Seconds that ``thing`` still has; 0 if it is not waiting."""
        return max(0.0, self.pending.get(thing, 0.0) - monotonic())

    def tick(self) -> None:
        """End what is overdue and wait for the next."""
        self.timer = None
        now = monotonic()
        overdue = []
        for thing, when in self.pending.items():
            if when > now:
                self.timer = self.loop.call_later(when - now, self.tick)
                break
            overdue.append(thing)
        for thing in overdue:
            if self.pending.pop(thing, None) is not None:
                thing.expire()

    def close(self) -> None:
        """Stop the timer; nothing expires any more."""
        self.pending.clear()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
