"""Stall: after a time nothing passes any more, and the connection stays open. Nothing is lost: the sender waits."""

from __future__ import annotations

from tabi.distort.keeping import Keeping
from tabi.distort.memory import Memory
from tabi.relay.stage import LONGEST_HOLD


class Stall(Keeping):
    """Reads nothing after so many seconds; 0: from the beginning. It keeps what stages before it emit, and the end.

    Args:
        seconds: until then.
        memory: what all stages hold.
    """

    __slots__ = ("seconds", "stalled")

    rest: bytearray

    def __init__(self, seconds: float, memory: Memory | None = None) -> None:
        super().__init__(memory)
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
        """Have the relay not be taken for idle: see `Stage.holds`."""
        self.call_later(LONGEST_HOLD, self.stay)

    def room(self, most: int) -> int:
        """See `Stage.room`."""
        return 0 if self.stalled else most

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        if self.stalled:
            self.rest += data
            self.hold(len(data))
        else:
            self.emit(data)

    def receive_end(self) -> None:
        """See `Stage.receive_end`."""
        if not self.stalled:
            self.emit_end()

    def go(self) -> None:
        """See `Keeping.go`: nothing goes on."""
