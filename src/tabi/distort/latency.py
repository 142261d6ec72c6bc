"""Latency: octets come later, and so does the end. Their order stays: one that would overtake others waits for them."""

from __future__ import annotations

import random
from collections import deque

from tabi.distort.memory import HELD_BY_ONE, MEMORY, Memory
from tabi.policy.faults import Distribution
from tabi.relay.stage import Stage

SOON = 0.0002
"""Seconds before its time that a chunk may go on, so that two that are due together take one timer."""

LONGEST = 3600.0


class Latency(Stage):
    """Holds each chunk for so many seconds, counted from when it was read.

    Args:
        latency: seconds.
        jitter: seconds: the latency is spread evenly up to so far from it, or with ``normal`` it is their standard
            deviation. It is never less than 0.
        distribution: ``uniform`` or ``normal``.
        dice: random numbers.
        memory: what all stages hold.
    """

    __slots__ = ("dice", "distribution", "jitter", "latency", "memory", "queue", "timed")

    limit = HELD_BY_ONE

    def __init__(
        self,
        latency: float,
        jitter: float = 0.0,
        distribution: Distribution = "uniform",
        dice: random.Random | None = None,
        memory: Memory = MEMORY,
    ) -> None:
        super().__init__()
        self.latency = latency
        self.jitter = jitter
        self.distribution = distribution
        self.dice = dice or random.Random()  # noqa: S311
        self.memory = memory
        self.queue: deque[tuple[float, bytes | None]] = deque()  # when, and what; None is the end
        self.timed = False

    def draw(self) -> float:
        """The seconds of the next chunk."""
        if not self.jitter:
            return self.latency
        if self.distribution == "normal":
            found = self.dice.gauss(self.latency, self.jitter)
        else:
            found = self.latency + self.jitter * (2 * self.dice.random() - 1)
        return min(max(0.0, found), LONGEST)

    def room(self, most: int) -> int:
        """See `Stage.room`."""
        return min(most, self.memory.room(self.held))

    def receive(self, data: bytes) -> None:
        """See `Stage.receive`."""
        self.held += len(data)
        self.memory.held += len(data)
        self.put(data)

    def receive_end(self) -> None:
        """See `Stage.receive_end`: the end is late too."""
        self.put(None)

    def put(self, data: bytes | None) -> None:
        """Have a chunk, or the end, go on in its time."""
        assert self.flow is not None
        when = self.flow.loop.time() + self.draw()
        if self.queue and when < self.queue[-1][0]:
            when = self.queue[-1][0]
        self.queue.append((when, data))
        if not self.timed:
            self.timed = True
            self.call_at(when, self.go)

    def go(self) -> None:
        """Pass on what is due."""
        self.timed = False
        queue, flow = self.queue, self.flow
        while queue and flow is not None and queue[0][0] <= flow.loop.time() + SOON:
            self.pass_on(queue.popleft()[1])
            flow = self.flow  # the relay may have closed
        if queue and flow is not None:
            self.timed = True
            self.call_at(queue[0][0], self.go)

    def pass_on(self, data: bytes | None) -> None:
        """Pass on what was held."""
        if data is None:
            self.emit_end()
        else:
            self.held -= len(data)
            self.memory.held -= len(data)
            self.emit(data)

    def flush(self) -> None:
        """See `Stage.flush`."""
        while self.queue and self.queue[0][1] is not None:
            self.pass_on(self.queue.popleft()[1])
        self.queue.clear()

    def closed(self, unsent: int) -> None:
        """See `Stage.closed`."""
        self.memory.held -= self.held
        self.held = 0
        self.queue.clear()
