"""The meter of limits: a stage that says how much may be read, and charges what was read.

A direction is charged for what it has read, so that several directions together never use more than there is.
If a bucket is empty, nothing is read, TCP slows the sender down, and the pacer lets the direction go on.
The meter sees no octets: a limited direction is spliced as any other, only in smaller steps.
"""

from __future__ import annotations

from time import monotonic_ns

from tabi.policy.limits import QUANTUM
from tabi.relay.pacer import Allowance, Pacer
from tabi.relay.pipes import BUFFER_SIZE
from tabi.relay.stage import Stage


class Meter(Stage):
    """Charges one direction. ``left`` is the last answer of the allowance; for ``taken`` see `relay.pacer.Waiter`."""

    copies = False

    __slots__ = ("direction", "lease", "left", "pacer", "queued", "taken")

    def __init__(self, lease: Allowance, direction: int, pacer: Pacer) -> None:
        super().__init__()
        self.lease = lease
        self.direction = direction
        self.pacer = pacer
        self.left = 0
        self.taken = 0
        self.queued = False  # whether the pacer has it

    def room(self, most: int) -> int:
        """See `Stage.room`. A small read uses the last answer: other directions may have taken as much meanwhile, each
        of them."""
        if self.queued:
            return 0
        room = self.left
        if room <= 0 or most > BUFFER_SIZE:
            room = self.lease.spend(self.direction, 0, monotonic_ns())
        if room > 0:
            turn = QUANTUM - self.taken
            if turn >= most or not self.lease.crowded:
                return min(room, most)
            if turn > 0:
                return min(room, most, turn)
            # Once more: since that answer the other direction may have been short, and of another account.
            room = self.lease.spend(self.direction, 0, monotonic_ns())
        self.left = 0
        if room < 0:
            assert self.flow is not None
            self.flow.relay.cut(self.lease.exhausted())
        else:
            self.queued = True
            self.pacer.wait(self)
        return 0

    def note(self, count: int) -> None:
        """See `Stage.note`."""
        self.taken += count
        self.left = self.lease.spend(self.direction, count, monotonic_ns())

    def go(self, room: int) -> None:
        """See `relay.pacer.Waiter`. The turn is as long as there is room for it, a quantum at least."""
        self.queued = False
        self.left = room
        self.taken = min(self.taken, QUANTUM - room)
        self.go_on()

    def holds(self, now: float) -> bool:
        """See `Stage.holds`. A direction that waits for a bucket is not quiet, however long that takes."""
        if self.queued and self.flow is not None:
            self.flow.relay.quiet_since = now
        return self.queued

    def closed(self, unsent: int) -> None:
        """See `Stage.closed`. Octets that were not delivered are given back."""
        if unsent:
            self.lease.spend(self.direction, -unsent, monotonic_ns())
