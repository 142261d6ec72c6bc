"""Losses on a connection. TCP sends again what was lost, so that no octet is missing: a loss is a wait.

A segment of `SEGMENT` octets that is lost waits for the retransmission time-out, `TIMEOUT` seconds, which doubles for
each loss that follows (RFC 6298 section 5.5); all behind it waits too.
"""

from __future__ import annotations

import random
from collections import deque

from tabi.distort.losses import Losses
from tabi.distort.memory import HELD_BY_ONE, MEMORY, Memory
from tabi.relay.stage import Stage

SEGMENT = 1460
TIMEOUT, LONGEST_TIMEOUT = 0.2, 60.0
"""Seconds, as Linux has them at least and tabi at most."""


class StreamLoss(Stage):
    """Makes octets wait as if segments were lost.

    Args:
        share: of the segments that is lost, less than 1 or they wait for ever.
        burst: how many are lost in a row, on average.
        dice: random numbers.
        memory: what all stages hold.
    """

    __slots__ = ("losses", "memory", "parts", "timeout")

    limit = HELD_BY_ONE

    def __init__(
        self, share: float, burst: float = 1.0, dice: random.Random | None = None, memory: Memory = MEMORY
    ) -> None:
        super().__init__()
        self.losses = Losses(share, burst, dice or random.Random())  # noqa: S311
        self.memory = memory
        self.parts: deque[bytes] = deque()  # what waits, in segments
        self.timeout = TIMEOUT

    def room(self, most: int) -> int:
        """See `Stage.room`."""
        return min(most, self.memory.room(self.held))

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        at = 0
        if not self.parts:
            while at < len(data) and not self.losses.next():
                at += SEGMENT
                self.timeout = TIMEOUT
            if at:
                self.emit(data[:at])
            if at >= len(data):
                return
            self.wait()
        self.parts += [data[start : start + SEGMENT] for start in range(at, len(data), SEGMENT)]
        self.hold(len(data) - at)

    def hold(self, count: int) -> None:
        """So many octets more are held."""
        self.held += count
        self.memory.held += count

    def wait(self) -> None:
        """The first segment is lost."""
        self.call_later(self.timeout, self.send_again)
        self.timeout = min(self.timeout * 2, LONGEST_TIMEOUT)

    def send_again(self) -> None:
        """The time-out is over: send on until another one is lost."""
        while self.parts and self.flow is not None:
            if self.losses.next():
                self.wait()
                return
            self.timeout = TIMEOUT
            part = self.parts.popleft()
            self.hold(-len(part))
            self.emit(part)
        if self.ended and self.flow is not None:
            self.emit_end()

    def receive_end(self) -> None:
        """See `Stage.receive_end`."""
        if not self.parts:
            self.emit_end()

    def flush(self) -> None:
        """See `Stage.flush`."""
        data = b"".join(self.parts)
        self.parts.clear()
        self.hold(-len(data))
        if data:
            self.emit(data)

    def closed(self, unsent: int) -> None:
        """See `Stage.closed`."""
        self.parts.clear()
        self.hold(-self.held)
