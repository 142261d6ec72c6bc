"""Deadlines for many things with the same time limit: a queue and one timer.

`asyncio.timeout` costs 4 us and a heap entry for each use. All handshakes have the same limit, so the first to begin is
the first to end: a dict in the order of insertion is the whole structure, and the timer stands for its head only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Protocol

from tabi.net.reactor import Reactor


class Expirable(Protocol):
    """What can run out of time."""

    def expire(self) -> None:
        """Called once, when the time is over. Must not raise."""


class FixedTimeouts:
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
        """Cancel the deadline of ``thing``. Harmless if it was not waiting."""
        self.pending.pop(thing, None)

    def left(self, thing: Expirable) -> float:
        """Seconds that ``thing`` still has; 0 if it is not waiting."""
        return max(0.0, self.pending.get(thing, 0.0) - monotonic())

    def tick(self) -> None:
        """End all that is overdue, and set the timer for the next."""
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


class Moving(Protocol):
    """What may be idle for a limited time: ``moved`` changes with everything that it does.

    ``rule`` is the name of the rule that has allowed it.
    """

    moved: int

    @property
    def rule(self) -> str | None: ...

    def expire(self) -> None:
        """Called when nothing has moved for too long, and again if it still does not move. Must not raise."""


SWEEPS = 10
"""Sweeps within the limit: an idle thing ends at most a tenth of the limit late."""


LONGEST_SWEEP = 60.0
"""Seconds between two sweeps at most, also for a limit that is endless: a reload may have made it shorter."""


class IdleRules:
    """The time that may pass without an octet where a rule says so: seconds by the name of the rule.

    The sweeps ask for it, so that a session costs nothing. A reload changes it for running sessions too.
    """

    def __init__(self) -> None:
        self.seconds: Mapping[str, float] = {}

    def of(self, rule: str | None, seconds: float) -> float:
        """The time for what a rule has allowed; ``seconds`` where it says nothing."""
        return seconds if rule is None else self.seconds.get(rule, seconds)

    def interval(self, seconds: float) -> float:
        """Seconds between two sweeps, for a limit of so many seconds and those of all rules."""
        shortest = min(seconds, *self.seconds.values()) if self.seconds else seconds
        return min(max(0.01, shortest / SWEEPS), LONGEST_SWEEP)


class IdleTimeouts:
    """Ends what has not moved for too long: one sweep over all, so that what moves looks at no clock.

    Args:
        reactor: its loop's timer is used.
        seconds: how long each may rest.
        rules: those that say something else.
    """

    def __init__(self, reactor: Reactor, seconds: float, rules: IdleRules | None = None) -> None:
        self.reactor = reactor
        self.loop = reactor.loop
        self.seconds = seconds
        self.rules = rules or IdleRules()
        self.seen: dict[Moving, tuple[int, float]] = {}
        self.timer: asyncio.TimerHandle | None = None

    def limit(self, rule: str | None) -> float:
        """How long what a rule has allowed may rest."""
        return self.rules.of(rule, self.seconds)

    def watch(self, thing: Moving) -> None:
        """Watch it from now on. It stays referenced until `forget`."""
        self.seen[thing] = thing.moved, monotonic()
        if self.timer is None:
            self.timer = self.loop.call_later(self.rules.interval(self.seconds), self.tick)

    def forget(self, thing: Moving) -> None:
        """Watch it no more. Harmless if it was not watched."""
        self.seen.pop(thing, None)

    def tick(self) -> None:
        """Sweep, and again after the interval while there is something to sweep."""
        self.timer = None
        self.sweep(monotonic())
        if self.seen:
            self.timer = self.loop.call_later(self.rules.interval(self.seconds), self.tick)

    def sweep(self, now: float) -> None:
        """Look at everything once. Many may end: the loop has its turns between them."""

        def look(thing: Moving) -> None:
            if thing not in self.seen:
                return
            moved, since = self.seen[thing]
            if thing.moved != moved:
                self.seen[thing] = thing.moved, now
            elif now - since >= self.limit(thing.rule):
                thing.expire()

        self.reactor.spread(tuple(self.seen), look)

    def close(self) -> None:
        """Stop the timer; nothing expires any more."""
        self.seen.clear()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
