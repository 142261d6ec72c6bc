"""Entry: one ``[[distort]]`` at work, with what it draws, shares and counts."""

from __future__ import annotations

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
        self.dice = random.Random()  # noqa: S311  a fault is not a secret

    def acts(self, now: float) -> bool:
        """Whether it acts at a time of the loop."""
        schedule = self.distort.schedule
        return not schedule or schedule.acts(self.clock(), now - self.began)

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

    def random(self, direction: int) -> random.Random:
        """Random numbers for one direction, UP or DOWN, of this session: with a seed the same in each run."""
        seed = self.entry.distort.seed
        if seed is None:
            return self.entry.dice
        return random.Random(f"{seed}/{self.number}/{'up' if direction == UP else 'down'}")  # noqa: S311
