"""What all stages of a process together may hold, so that many slow connections cannot fill its memory."""

from __future__ import annotations

HELD_BY_ONE = 4 << 20
"""Octets that a stage holds at most: at 1 s of latency that carries 32 Mbit/s."""

HELD_BY_ALL = 256 << 20
"""Octets that all of a process hold together. Beyond it each stage holds `LEAST`, and its sender waits."""

LEAST = 16 << 10
"""Octets that each stage may hold in any case, so that no connection stands still."""

ENTRY = 200
"""Octets of memory that a chunk costs beside its own, if it is kept by itself: a peer may send single octets."""


class Memory:
    """Counts what is held."""

    __slots__ = ("held", "most")

    def __init__(self, most: int = HELD_BY_ALL) -> None:
        self.most = most
        self.held = 0

    def room(self, held: int) -> int:
        """How many more octets a stage may take in that holds so many; 0 or less: none."""
        if self.held < self.most:
            return min(HELD_BY_ONE - held, self.most - self.held + LEAST)
        return LEAST - held


MEMORY = Memory()
"""That of this process."""
