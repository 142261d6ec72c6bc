"""Losses on a connection. TCP sends again what was lost, so that no octet is missing: a loss is a wait.

A segment of `SEGMENT` octets that is lost waits for the retransmission time-out, `TIMEOUT` seconds, which doubles for
each loss that follows (RFC 6298 section 5.5); all behind it waits too.
"""

from __future__ import annotations

import random
from collections import deque

from tabi.distort.keeping import PIECE, Keeping
from tabi.distort.losses import Losses
from tabi.distort.memory import HELD_BY_ONE, Memory

SEGMENT = 1460
TIMEOUT, LONGEST_TIMEOUT = 0.2, 60.0
"""Seconds, as Linux has them at least and tabi at most."""


class StreamLoss(Keeping):
    """Makes octets wait as if segments were lost. A chunk that is smaller than a segment is one too.

    Args:
        share: of the segments that is lost, less than 1 or they wait for ever.
        burst: how many are lost in a row, on average.
        dice: random numbers.
        memory: what all stages hold.
    """

    __slots__ = ("losses", "timeout")

    limit = HELD_BY_ONE
    rest: deque[bytes]  # segments; the first one was lost, unless the sink is blocked

    def __init__(
        self, share: float, burst: float = 1.0, dice: random.Random | None = None, memory: Memory | None = None
    ) -> None:
        super().__init__(memory)
        self.losses = Losses(share, burst, dice or random.Random())  # noqa: S311
        self.rest = deque()
        self.timeout = TIMEOUT

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        at, first = 0, not self.rest
        if first:
            while at < len(data) and not self.losses.next():
                at += SEGMENT
            if at:
                self.timeout = TIMEOUT
                self.emit(data[:at])
            if at >= len(data) or self.flow is None:
                return
        before = len(self.rest)
        self.rest += [data[start : start + SEGMENT] for start in range(at, len(data), SEGMENT)]
        self.hold(len(data) - at, len(self.rest) - before)
        if first:
            self.wait(self.back_off())

    def back_off(self) -> float:
        """The first segment is lost: in how many seconds it is sent again."""
        seconds = self.timeout
        self.timeout = min(seconds * 2, LONGEST_TIMEOUT)
        return seconds

    def step(self) -> float:
        """See `Keeping.step`: a time-out is over, and the first segment is sent again, and so on until one is lost."""
        rest, next_is_lost = self.rest, self.losses.next
        if next_is_lost():
            return self.back_off()
        self.timeout = TIMEOUT
        found = [rest.popleft()]
        size, seconds = len(found[0]), 0.0
        while rest and size < PIECE:
            if next_is_lost():
                seconds = self.back_off()
                break
            found.append(rest.popleft())
            size += len(found[-1])
        self.hold(-size, -len(found))
        self.emit(b"".join(found))
        return seconds

    def joined(self) -> bytes:
        """See `Keeping.joined`."""
        return b"".join(self.rest)
