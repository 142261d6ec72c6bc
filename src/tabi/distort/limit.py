"""Limit: so many octets of a connection pass, then it ends."""

from __future__ import annotations

from tabi.policy.faults import Ending
from tabi.relay.stage import Stage

GRACE = 0.05
"""Seconds in which the source may end by itself behind the last octet: then it is its own end, and no fault. One more
octet is the end at once, and so is this time."""


class Limit(Stage):
    """Ends the relay behind so many octets. They count from the beginning of the connection, also if the stage is put
    on later.

    Args:
        octets: that pass.
        then: how it ends.
        label: of the entry, for the log.
    """

    __slots__ = ("label", "left", "octets", "over", "then")

    def __init__(self, octets: int, then: Ending, label: str) -> None:
        super().__init__()
        self.octets = octets
        self.then = then
        self.label = label
        self.left = octets
        self.over = False

    def attached(self) -> None:
        """See `Stage.attached`. What no stage has any more, and the sink not yet, has passed too."""
        flow = self.flow
        assert flow is not None
        waiting = len(flow.kept) + (0 if flow.pipe is None else flow.pipe.held)
        self.left = max(0, self.octets - flow.octets - waiting)
        if not self.left:
            self.next_turn(self.finish)

    def room(self, most: int) -> int:
        """See `Stage.room`: one octet more, to see that there is more."""
        return 0 if self.over else min(most, self.left + 1)

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        passed = data[: self.left]
        self.left -= len(passed)
        if passed:
            self.emit(passed)
        if len(passed) < len(data):
            self.finish()
        elif not self.left:
            self.call_later(GRACE, self.finish)

    def finish(self) -> None:
        """So many have passed, and the source has not ended."""
        self.over = True
        self.end_relay_after(self.then, f"{self.label}: the limit of {self.octets} octets")
