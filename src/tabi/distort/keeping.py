"""Keeping: what stages share that hold octets and pass them on later, in order.

They count in the memory of all, wait while the sink takes nothing, and leave long work to several turns of the reactor.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from tabi.distort.memory import ENTRY, MEMORY, Memory
from tabi.relay.stage import LONGEST_HOLD, Stage

PIECE = 1 << 16
"""Octets that are emitted at once, at most, apart from `Stage.flush`."""


class Keeping(Stage):
    """Keeps octets in ``rest``. A subclass says by `step` what becomes of the first of them.

    Args:
        memory: what all stages hold.
    """

    __slots__ = ("memory", "rest", "waiting", "weight")

    rest: bytearray | deque[Any]

    def __init__(self, memory: Memory | None = None) -> None:
        super().__init__()
        self.memory = MEMORY if memory is None else memory
        self.rest = bytearray()
        self.waiting = False
        """Whether `go` is going to be called at a time, or in the next turn."""
        self.weight = 0
        """Octets of memory."""

    # --- what a subclass overrides ---

    def step(self) -> float:
        """Emit some of ``rest``, or nothing; in how many seconds it goes on: 0 is at once. There is some."""
        raise NotImplementedError

    def joined(self) -> bytes:
        """All octets of ``rest``."""
        return bytes(self.rest)

    # --- what it calls ---

    def hold(self, octets: int, entries: int = 0) -> None:
        """So many octets more are held, in so many chunks that are kept by themselves. It has to be called before what
        is held no more is emitted: that may be the end of the relay."""
        self.held += octets
        weight = octets + entries * ENTRY
        self.weight += weight
        self.memory.held += weight

    def take(self, most: int) -> bytes:
        """The first octets of a ``rest`` that has no chunks; they are not held any more."""
        rest = self.rest
        assert isinstance(rest, bytearray)
        found = bytes(rest[:most])
        del rest[:most]
        self.hold(-len(found))
        return found

    def wait(self, seconds: float) -> None:
        """Go on in so many seconds."""
        self.waiting = True
        self.call_later(min(seconds, LONGEST_HOLD), self.go)

    def go(self) -> None:
        """Pass on what is due, as long as the sink takes it and this turn has time."""
        self.waiting = False
        while self.rest and not self.waiting:
            if self.is_blocked:
                return
            seconds = self.step()
            if self.flow is None:  # that was the end of the relay
                return
            if seconds > 0:
                self.wait(seconds)
            elif self.rest and self.is_late:
                self.waiting = True
                self.next_turn(self.go)
        if self.ended and not self.rest:
            self.emit_end()

    # --- what the flow calls ---

    def room(self, most: int) -> int:
        """See `Stage.room`."""
        return min(most, self.memory.room(self.weight))

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        assert isinstance(self.rest, bytearray)
        self.rest += data
        self.hold(len(data))
        if not self.waiting:
            self.go()

    def receive_end(self) -> None:
        """See `Stage.receive_end`: it comes behind all that is kept."""
        if not self.rest:
            self.emit_end()

    def resume_writing(self) -> None:
        """See `Stage.resume_writing`."""
        if not self.waiting:
            self.go()

    def flush(self) -> None:
        """See `Stage.flush`: all goes on in one piece."""
        data = self.joined()
        self.forget()
        if data:
            self.emit(data)

    def closed(self, unsent: int) -> None:
        """See `Stage.closed`."""
        self.forget()

    def forget(self) -> None:
        """Hold nothing."""
        self.rest.clear()
        self.memory.held -= self.weight
        self.held = self.weight = 0
