"""Limit: so many octets of a connection pass, then it ends."""

from __future__ import annotations

from tabi.policy.faults import Ending
from tabi.relay.stage import Stage


class Limit(Stage):
    """Ends the relay behind so many octets. They count from the beginning of the connection, also if the stage is put
    on later.

    Args:
        octets: that pass.
        then: how it ends.
        label: of the entry, for the log.
    """

    __slots__ = ("label", "left", "octets", "then")

    def __init__(self, octets: int, then: Ending, label: str) -> None:
        super().__init__()
        self.octets = octets
        self.then = then
        self.label = label
        self.left = octets

    def attached(self) -> None:
        """See `Stage.attached`."""
        assert self.flow is not None
        self.left = max(0, self.octets - self.flow.octets)

    def room(self, most: int) -> int:
        """See `Stage.room`: one octet more, to see that there is more."""
        return min(most, self.left + 1)

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        passed = data[: self.left]
        self.left -= len(passed)
        if passed:
            self.emit(passed)
        if not self.left:
            self.end_relay_after(self.then, f"{self.label}: the limit of {self.octets} octets")
