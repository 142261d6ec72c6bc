"""Slicing: octets come in pieces, with a pause between two of them."""

from __future__ import annotations

import random

from tabi.relay.stage import Stage


class Slicing(Stage):
    """Passes on pieces.

    Args:
        size: octets of a piece.
        variation: how far a piece is from that, at most; less than ``size``.
        gap: seconds between two pieces; with 0 they go on one after the other.
        dice: random numbers.
    """

    __slots__ = ("dice", "gap", "paused", "rest", "size", "variation")

    def __init__(self, size: int, variation: int = 0, gap: float = 0.0, dice: random.Random | None = None) -> None:
        super().__init__()
        self.size = size
        self.variation = variation
        self.gap = gap
        self.dice = dice or random.Random()  # noqa: S311
        self.rest = bytearray()
        self.paused = False

    def draw(self) -> int:
        """Octets of the next piece."""
        return self.size + (self.dice.randint(-self.variation, self.variation) if self.variation else 0)

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        if not self.gap:
            at = 0
            while at < len(data):
                size = self.draw()
                self.emit(data[at : at + size])
                at += size
            return
        self.rest += data
        self.held = len(self.rest)
        if not self.paused:
            self.go()

    def go(self) -> None:
        """Pass the next piece on, and pause."""
        self.paused = False
        if self.rest:
            size = self.draw()
            piece = bytes(self.rest[:size])
            del self.rest[:size]
            self.held = len(self.rest)
            self.paused = True
            self.call_later(self.gap, self.go)
            self.emit(piece)
        if self.ended and not self.rest:
            self.emit_end()

    def receive_end(self) -> None:
        """See `Stage.receive_end`."""
        if not self.rest:
            self.emit_end()

    def flush(self) -> None:
        """See `Stage.flush`: the rest goes on in one piece."""
        data, self.rest, self.held = bytes(self.rest), bytearray(), 0
        if data:
            self.emit(data)
