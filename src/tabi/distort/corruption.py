"""Corruption: now and then one bit of an octet is another."""

from __future__ import annotations

import random
from math import inf, log, log1p

from tabi.distort.keeping import Keeping
from tabi.distort.memory import Memory

AT_ONCE = 2048
"""Bits that are changed at once, about: a millisecond or two."""


class Flips:
    """Changes bits.

    Args:
        share: of the octets that has one bit changed, 0 to 1.
        dice: random numbers.
    """

    __slots__ = ("dice", "left", "share")

    def __init__(self, share: float, dice: random.Random) -> None:
        self.share = share
        self.dice = dice
        self.left = self.draw()

    def draw(self) -> int | float:
        """How many octets stay as they are before the next change (a geometric distribution)."""
        if self.share <= 0:
            return inf
        if self.share >= 1:
            return 0
        found = log(1 - self.dice.random()) / log1p(-self.share)
        return int(found) if found < inf else inf

    def change(self, data: bytes) -> bytes:
        """The octets with those bits changed whose turn it is."""
        if self.left >= len(data):
            self.left -= len(data)
            return data
        found, at = bytearray(data), self.left
        while at < len(found):
            found[int(at)] ^= 1 << self.dice.randrange(8)
            at += 1 + self.draw()
        self.left = at - len(found)
        return bytes(found)


class Corruption(Keeping):
    """Changes bits of what passes.

    Args:
        share, dice: see `Flips`.
        memory: what all stages hold.
    """

    __slots__ = ("flips", "most")

    rest: bytearray

    def __init__(self, share: float, dice: random.Random | None = None, memory: Memory | None = None) -> None:
        super().__init__(memory)
        self.flips = Flips(share, dice or random.Random())  # noqa: S311
        self.most = AT_ONCE / share if share > 0 else inf

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`. What is not much work is not kept."""
        if self.held or len(data) > self.most:
            super().receive(data)
        else:
            self.emit(self.flips.change(data))

    def step(self) -> float:
        """See `Keeping.step`."""
        self.emit(self.flips.change(self.take(int(self.most))))
        return 0.0
