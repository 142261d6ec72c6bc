"""Slicing: octets come in pieces, with a pause between two of them."""

from __future__ import annotations

import random

from tabi.distort.keeping import PIECE, Keeping
from tabi.distort.memory import Memory


class Slicing(Keeping):
    """Passes on pieces.

    Args:
        size: octets of a piece.
        variation: how far a piece is from that, at most; less than ``size``.
        gap: seconds between two pieces; with 0 they go on one after the other.
        dice: random numbers.
        memory: what all stages hold.
    """

    __slots__ = ("dice", "gap", "size", "variation")

    limit = PIECE
    rest: bytearray

    def __init__(
        self,
        size: int,
        variation: int = 0,
        gap: float = 0.0,
        dice: random.Random | None = None,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(memory)
        self.size = size
        self.variation = variation
        self.gap = gap
        self.dice = dice or random.Random()  # noqa: S311

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`. What is no more than a piece is not kept."""
        if self.gap or self.held or self.waiting or len(data) > self.size - self.variation:
            super().receive(data)
        else:
            self.emit(data)

    def step(self) -> float:
        """See `Keeping.step`."""
        size = self.size + (self.dice.randint(-self.variation, self.variation) if self.variation else 0)
        self.emit(self.take(size))
        return self.gap
