"""Latency: octets come later, and so does the end. Their order stays: one that would overtake others waits for them."""

from __future__ import annotations

import random
from collections import deque

from tabi.distort.keeping import PIECE, Keeping
from tabi.distort.memory import HELD_BY_ONE, Memory
from tabi.policy.faults import Distribution
from tabi.relay.stage import LONGEST_HOLD

SOON = 0.0002
"""Seconds before its time that a chunk may go on, so that chunks that are due together take one timer, and one send."""


class Latency(Keeping):
    """Holds each chunk for so many seconds, counted from when it was read.

    Args:
        latency: seconds.
        jitter: seconds: the latency is spread evenly up to so far from it, or with ``normal`` it is their standard
            deviation. It is never less than 0, also if the jitter is the larger one.
        distribution: ``uniform`` or ``normal``.
        dice: random numbers.
        memory: what all stages hold.
    """

    __slots__ = ("dice", "distribution", "jitter", "latency")

    limit = HELD_BY_ONE
    rest: deque[tuple[float, bytes | None]]  # when, and what; None is the end

    def __init__(
        self,
        latency: float,
        jitter: float = 0.0,
        distribution: Distribution = "uniform",
        dice: random.Random | None = None,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(memory)
        self.latency = latency
        self.jitter = jitter
        self.distribution = distribution
        self.dice = dice or random.Random()  # noqa: S311
        self.rest = deque()

    def draw(self) -> float:
        """The seconds of the next chunk."""
        if not self.jitter:
            return self.latency
        if self.distribution == "normal":
            found = self.dice.gauss(self.latency, self.jitter)
        else:
            found = self.latency + self.jitter * (2 * self.dice.random() - 1)
        return min(max(0.0, found), LONGEST_HOLD)

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        self.hold(len(data), 1)
        self.put(data)

    def receive_end(self) -> None:
        """See `Stage.receive_end`: the end is late too."""
        self.put(None)

    def put(self, data: bytes | None) -> None:
        """Have a chunk, or the end, go on in its time."""
        assert self.flow is not None
        seconds, rest = self.draw(), self.rest
        when = self.flow.loop.time() + seconds
        rest.append((max(when, rest[-1][0]) if rest else when, data))
        if not self.waiting:
            if seconds > SOON and len(rest) == 1:
                self.wait(seconds)
            else:
                self.go()

    def step(self) -> float:
        """See `Keeping.step`."""
        assert self.flow is not None
        rest, now = self.rest, self.flow.loop.time()
        when, data = rest[0]
        if when > now + SOON:
            return when - now
        rest.popleft()
        if data is None:
            self.emit_end()
            return 0.0
        size, more = len(data), [data]
        while rest and rest[0][0] <= now + SOON and size < PIECE and (data := rest[0][1]) is not None:
            rest.popleft()
            more.append(data)
            size += len(data)
        self.hold(-size, -len(more))
        self.emit(more[0] if len(more) == 1 else b"".join(more))
        return 0.0

    def joined(self) -> bytes:
        """See `Keeping.joined`."""
        return b"".join([data for _, data in self.rest if data is not None])
