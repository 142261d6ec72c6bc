"""Timed end: a connection ends after a time, busy or not."""

from __future__ import annotations

from tabi.policy.faults import Ending
from tabi.relay.stage import Stage


class TimedEnd(Stage):
    """Ends the relay so many seconds after it is put on.

    Args:
        seconds: until the end.
        how: an end or a reset, of both sides at once.
        label: of the entry, for the log.
    """

    __slots__ = ("how", "label", "seconds")

    copies = False

    def __init__(self, seconds: float, how: Ending, label: str) -> None:
        super().__init__()
        self.seconds = seconds
        self.how = how
        self.label = label

    def attached(self) -> None:
        """See `Stage.attached`."""
        self.call_later(self.seconds, self.over)

    def over(self) -> None:
        """The time is over."""
        what = "reset" if self.how == "reset" else "closed"
        self.end_relay(self.how, f"{self.label}: {what} after {self.seconds:g} s")
