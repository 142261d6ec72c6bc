"""Losses: which of a row of segments or datagrams is lost."""

from __future__ import annotations

import random


class Losses:
    """Losses that are independent of each other, or come in bursts (the model of Gilbert and Elliott, in which all is
    lost in the bad state and nothing in the good one).

    Args:
        share: of all that is lost, 0 to 1.
        burst: how many are lost in a row, on average; 1: each loss is independent.
        dice: random numbers.
    """

    __slots__ = ("bad", "dice", "enter", "leave", "share")

    def __init__(self, share: float, burst: float, dice: random.Random) -> None:
        self.share = share
        self.dice = dice
        self.bad = False
        self.leave = 0.0 if burst <= 1 else 1 / burst
        """The probability of the good state after a loss; 0: there are no states."""
        self.enter = 0.0 if share >= 1 else self.leave * share / (1 - share)

    def next(self) -> bool:
        """Whether the next one is lost."""
        if not self.leave or self.share >= 1:
            return self.dice.random() < self.share
        if self.bad:
            self.bad = self.dice.random() >= self.leave
        else:
            self.bad = self.dice.random() < self.enter
        return self.bad
