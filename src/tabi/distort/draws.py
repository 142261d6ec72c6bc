"""Entry: one ``[[distort]]`` at work, with what it draws, shares and counts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from time import time
from typing import NamedTuple

from tabi.policy.distorts import Distort
from tabi.policy.faults import Fault
from tabi.policy.limits import UP

NOTHING = Fault()


class Bucket:
    """When bandwidth that several sessions share is free again, by the clock of the loop. -1: it never was used."""

    __slots__ = ("free_at",)

    def __init__(self) -> None:
        self.free_at = -1.0


class Entry:
    """A `Distort` at work.

    Args:
        distort: what it says.
        began: the time of the loop when it was set: its cycle begins there.
        clock: seconds since 1970.
    """

    def __init__(self, distort: Distort, began: float, clock: Callable[[], float] = time) -> None:
        self.distort = distort
        self.fault = distort.fault or NOTHING
        self.began = began
        self.clock = clock
        self.buckets = Bucket(), Bucket()
        self.chosen = 0
        """Sessions that were drawn."""
        self.active = 0
        """Sessions that have it now."""
        self.matched = 0
        self.gone = False
        """Whether it was taken away."""
        self.resting: set[asyncio.Future[None]] = set()
        self.dice = random.Random()  # noqa: S311  a fault is not a secret

    def acts(self, now: float) -> bool:
        """Whether it acts at a time of the loop."""
        schedule = self.distort.schedule
        return not self.gone and (not schedule or schedule.acts(self.clock(), now - self.began))

    def take(self, distort: Distort, now: float) -> bool:
        """Go on with other settings, for the same sessions; whether that is another fault. ``now`` is of the loop."""
        before, self.distort = self.distort, distort
        if (before.fault, before.schedule) == (distort.fault, distort.schedule):
            return False
        self.fault = distort.fault or NOTHING
        self.buckets = Bucket(), Bucket()
        if before.schedule != distort.schedule:
            self.began = now
        self.wake()
        return True

    def leave(self) -> None:
        """It was taken away."""
        self.gone = True
        self.wake()

    async def rest(self, seconds: float) -> None:
        """Wait for so many seconds, or until `wake`."""
        resting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.resting.add(resting)
        try:
            await asyncio.wait((resting,), timeout=seconds)
        finally:
            self.resting.discard(resting)

    def wake(self) -> None:
        """Those that rest go on: it may not act any more."""
        for resting in tuple(self.resting):
            if not resting.done():
                resting.set_result(None)

    def draw(self) -> Drawn | None:
        """One more session matches: whether it is chosen, drawn once for each."""
        number = self.matched
        self.matched += 1
        seed, probability = self.distort.seed, self.distort.probability
        if seed is None:
            if probability < 1 and self.dice.random() >= probability:
                return None
        elif probability < 1 and random.Random(f"{seed}/{number}").random() >= probability:  # noqa: S311
            return None
        self.chosen += 1
        return Drawn(self, number)


class Drawn(NamedTuple):
    """An entry that a session was drawn for."""

    entry: Entry
    number: int
    """Which of the sessions that match it is."""

    @property
    def acts_on_octets(self) -> bool:
        """Whether it has stages, now or later."""
        return self.entry.fault.on_octets and not self.entry.gone

    @property
    def acts_at_dial(self) -> bool:
        """Whether it may act before there is a connection."""
        return self.entry.fault.at_dial and not self.entry.gone

    def random(self, direction: int, use: str = "") -> random.Random:
        """Random numbers for one direction, UP or DOWN, of this session: with a seed the same in each run, whatever
        others are drawn for another use."""
        seed = self.entry.distort.seed
        if seed is None:
            return self.entry.dice
        return random.Random(f"{seed}/{self.number}/{'up' if direction == UP else 'down'}{use}")  # noqa: S311
