"""What the datagrams of one destination of an association pass in one direction, and how far each of them is."""

from __future__ import annotations

from collections import deque

from tabi.distort.datagram_line import DatagramLine
from tabi.distort.draws import Entry
from tabi.relay.datagram_inspector import Direction
from tabi.wire.address import Address

COST = 256
"""Octets that a datagram that waits takes in addition to its payload."""


class Waiting:
    """A datagram on its way: it waits for the time at which it comes to the next entry, or goes on behind the last."""

    __slots__ = ("address", "at", "direction", "gone", "lines", "overtaken", "path", "payload", "when")

    def __init__(self, when: float, path: Path, direction: Direction, address: Address, payload: bytes) -> None:
        self.when = when
        self.path = path
        self.direction: Direction = direction
        self.address = address
        self.payload = payload
        self.lines = path.lines
        self.at = 0
        """Which of them is the next."""
        self.overtaken = False
        self.gone = False

    def copy(self) -> Waiting:
        """Another one that is as far."""
        other = Waiting(self.when, self.path, self.direction, self.address, self.payload)
        other.lines, other.at = self.lines, self.at
        return other

    @property
    def octets(self) -> int:
        """What it takes."""
        return len(self.payload) + COST


class Path:
    """What the datagrams of one destination pass in one direction."""

    __slots__ = ("arrivals", "held_back", "last", "lines", "opens_at", "version")

    def __init__(self) -> None:
        self.lines: list[tuple[Entry, DatagramLine]] = []
        self.arrivals: dict[DatagramLine, float] = {}  # when the last one that waits for a line comes there
        self.version = -1
        self.last = 0.0  # when the last one goes on: those behind it are not before that
        self.opens_at = 0.0
        self.held_back: deque[Waiting] = deque()


def has_passed(one: Waiting, path: Path, line: DatagramLine) -> bool:
    """Whether a datagram of a destination is behind a line."""
    return one.path is path and not one.gone and any(passed is line for _, passed in one.lines[: one.at])
