"""Stall: after a time nothing passes any more, and the connection stays open. Nothing is lost: the sender waits."""

from __future__ import annotations

from tabi.relay.stage import LONGEST_HOLD, Stage


class Stall(Stage):
    """Reads nothing after so many seconds; 0: from the beginning."""

    __slots__ = ("seconds", "stalled")

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.stalled = seconds <= 0

    def attached(self) -> None:
        """See `Stage.attached`."""
        if self.stalled:
            self.stay()
        else:
            self.call_later(self.seconds, self.begin)

    def begin(self) -> None:
        """The time is over."""
        self.stalled = True
        self.stay()

    def stay(self) -> None:
        """Have the relay not be taken for idle."""
        self.call_later(LONGEST_HOLD, self.stay)

    def room(self, most: int) -> int:
        """See `Stage.room`."""
        return 0 if self.stalled else most
