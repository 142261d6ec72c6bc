"""Limits for each client's address: how many connections at once, how often one may begin. No I/O.

An address is an IPv4 address or an IPv6 /64, which is what one customer has. The table has a fixed size, whoever
connects: a row for each address that has connections, or had some so lately that the rate of new ones matters.

    KEY RATE              the address, and the state of its bucket (GCRA, nanoseconds; see `limits.py`)
    OPEN WAITING, ...     its connections, and those of them that have not come to their request, a pair for each worker
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from tabi.errors import LimitExceeded
from tabi.policy.quantities import Rate

KEY, RATE, OPEN, WAITING = range(4)

ROWS = 1 << 16
"""Addresses that have a row. When there is no row for one more, it is not limited here."""

PLACES = 8
"""Rows that an address may have: those that follow each other from the place that its hash gives."""

MASK = (1 << 64) - 1
FACTOR = 0x9E3779B97F4A7C15  # of Fibonacci hashing, for a table that nobody attacks
IPV4 = -(1 << 56)  # the keys of multicast's ff00::/8, which no client comes from


def key_of(host: IPv4Address | IPv6Address) -> int:
    """The key of a client's address, for a cell of 64 bits: never 0, which is that of an empty row."""
    if host.version == 4:
        return IPV4 + int(host)
    prefix = int(host) >> 64
    return (prefix - (1 << 64) if prefix >> 63 else prefix) or 1  # ::1 is of ::/64


class ClientTerms(NamedTuple):
    """What one address may have in all workers together; None is no limit."""

    connections: int | None = None
    waiting: int | None = None
    """Connections that have not come to their request."""
    connect_rate: Rate | None = None


class ClientTable:
    """What the addresses have. Tables for several processes are subclasses (`server/ledger.py`).

    Args:
        workers: how many processes have a pair of cells in each row.
        factor: odd and secret, so that nobody can choose addresses that share their places.
    """

    def __init__(self, workers: int = 1, factor: int = FACTOR) -> None:
        self.width = OPEN + 2 * workers
        self.column = OPEN
        self.factor = factor
        self.cells = self.make_cells(ROWS * self.width)

    def make_cells(self, count: int) -> MutableSequence[int]:
        """So many cells of zeros."""
        return array("q", bytes(8 * count))

    def enter(self) -> None:
        """Keep other processes out, if there are any."""

    def leave(self) -> None:
        """Let them in again."""

    def admit(self, key: int, terms: ClientTerms, now: int) -> int | None:
        """Count a connection that begins, and has not come to its request.

        Args:
            key: of its address.
            terms: what that may have.
            now: nanoseconds of the monotonic clock.

        Returns:
            The row, for `asked` and `ended`; None if there is none, so that it is not limited.

        Raises:
            LimitExceeded: it may not begin.
        """
        self.enter()
        try:
            row = self.find(key, now)
            if row is not None:
                self.begin(row, terms, now)
            return row
        finally:
            self.leave()

    def find(self, key: int, now: int) -> int | None:
        """The row of an address, or one that it gets. Between `enter` and `leave`."""
        cells, width, free = self.cells, self.width, None
        place = ((key & MASK) * self.factor & MASK) >> 48
        for number in range(place, place + PLACES):
            row = number % ROWS * width
            if cells[row + KEY] == key:
                return row
            if free is None and cells[row + RATE] <= now and not any(cells[row + OPEN : row + width]):
                free = row
        if free is not None:
            cells[free + KEY], cells[free + RATE] = key, 0
        return free

    def begin(self, row: int, terms: ClientTerms, now: int) -> None:
        """Count a connection of the address whose row it is. Raises LimitExceeded."""
        cells, rate = self.cells, terms.connect_rate
        if terms.connections is not None and self.total(row, OPEN) >= terms.connections:
            raise LimitExceeded(f"{terms.connections} connections at once", "connections")
        if terms.waiting is not None and self.total(row, WAITING) >= terms.waiting:
            raise LimitExceeded(f"{terms.waiting} connections that have asked for nothing", "unauthenticated")
        if rate is not None:
            gap, full = int(1e9 / rate), max(cells[row + RATE], now)
            if full - now > gap * (rate.count - 1):
                raise LimitExceeded(f"{rate} connections", "connect_rate")
            cells[row + RATE] = full + gap
        # No other process writes these two cells.
        cells[row + self.column] += 1
        cells[row + self.column + 1] += 1

    def total(self, row: int, what: int) -> int:
        """What all workers have: OPEN or WAITING."""
        return sum(self.cells[row + what : row + self.width : 2])

    def asked(self, row: int) -> None:
        """A connection has come to its request, or will not."""
        self.cells[row + self.column + 1] -= 1

    def ended(self, row: int) -> None:
        """A connection is over."""
        self.cells[row + self.column] -= 1

    def forget_worker(self, worker: int) -> None:
        """A worker has ended, and so have its connections."""
        cells = self.cells
        for at in range(OPEN + 2 * worker, len(cells), self.width):
            if cells[at] or cells[at + 1]:
                cells[at] = cells[at + 1] = 0
