"""Corruption: now and then one bit of an octet is another."""

from __future__ import annotations

import random
from math import inf, log

from tabi.relay.stage import Stage


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
        return int(log(1 - self.dice.random()) / log(1 - self.share))

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


class Corruption(Stage):
    """Changes bits of what passes; arguments as `Flips`."""

    __slots__ = ("flips",)

    def __init__(self, share: float, dice: random.Random | None = None) -> None:
        super().__init__()
        self.flips = Flips(share, dice or random.Random())  # noqa: S311

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        self.emit(self.flips.change(data))
