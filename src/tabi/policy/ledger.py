"""The ledger: what each account has running and has used, in cells of 64 bits. No I/O: shared memory is handed in.

Limits apply to an account: a user, a group, a network of clients, or the whole server. It has a row:

    RATE UP DOWN          the state of its three buckets, nanoseconds of the monotonic clock (see `limits.py`)
    USED PERIOD SAVED     octets used in the quota's period, the second since 1970 when that began, and how many of
                          them are on disk
    RUNNING, ...          sessions under way, a cell for each worker: what a worker that died had is taken back

Rows have names, so that a reload finds what was counted before. A row is made when its account is first used: there
may be very many users, of which few are active.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableSequence
from functools import cached_property
from typing import NamedTuple, Protocol

from tabi.policy.clients import ClientTable

RATE, UP, DOWN, USED, PERIOD, SAVED, RUNNING = range(7)


class Used(NamedTuple):
    """Octets that an account has used in a period, which began at a second since 1970."""

    account: str
    period: int
    octets: int


class Usage(Protocol):
    """The ledger, as a store of quotas uses it."""

    def unsaved(self) -> list[Used]:
        """What was used since it was stored."""

    def saved(self, rows: Iterable[Used], /) -> None:
        """What `unsaved` gave is stored now; octets less than 0 take that back."""


class UsageStore(Protocol):
    """Keeps what was used of quotas: the one of this machine is a file (`server/quota_store.py`)."""

    def load(self) -> Mapping[str, tuple[int, int]]:
        """By account, when its period began (seconds since 1970) and the octets used. Raises ConfigError."""

    def save(self, usage: Usage, together: bool = False, /) -> bool:
        """Add what was used since the last time. False if that failed: then the next call adds all of it.

        Where two servers store ``together``, what is stored of a later period stays.
        """


class Ledger:
    """The ledger of one thread. Ledgers for several threads or processes are subclasses (`server/ledger.py`).

    Args:
        workers: how many processes have a cell for what they have running.
    """

    shared = False
    """Whether `enter` and `leave` must stand around what reads and writes: other processes do the same."""

    def __init__(self, workers: int = 1) -> None:
        self.width = RUNNING + workers
        self.column = RUNNING
        self.rows: dict[str, int] = {}
        self.cells: MutableSequence[int] = []

    def __repr__(self) -> str:
        return f"Ledger({len(self.rows)} accounts)"

    @cached_property
    def clients(self) -> ClientTable:
        """What each client's address has, if that is limited."""
        return ClientTable()

    def row(self, name: str) -> int:
        """The index of the first cell of an account's row. If there is no row, one is made with zeros."""
        at = self.rows.get(name)
        return self.add_row(name) if at is None else at

    def add_row(self, name: str) -> int:
        """The index of the first cell of a row that this process does not know yet."""
        self.enter()
        try:
            self.learn()
            at = self.rows.get(name)
            if at is None:
                at = len(self.rows) * self.width
                self.tell(name)
                self.rows[name] = at
            self.extend(at + self.width)
        finally:
            self.leave()
        return at

    def learn(self) -> None:
        """Take up the rows that other processes have made, if there are any; between `enter` and `leave`."""

    def tell(self, name: str) -> None:
        """Tell other processes, if there are any, that the next row is for this account; as `learn`."""

    def extend(self, cells: int) -> None:
        """Have at least so many cells."""
        self.cells.extend([0] * (cells - len(self.cells)))

    def enter(self) -> None:
        """Keep others out, if there are any: threads, other processes."""

    def leave(self) -> None:
        """Let them in again."""

    def running(self, at: int) -> int:
        """Sessions under way of the account whose row begins at ``at``, in all processes."""
        if self.width == RUNNING + 1:
            return self.cells[at + RUNNING]
        return sum(self.cells[at + RUNNING : at + self.width])

    def forget_worker(self, worker: int) -> None:
        """A worker has ended, and so have all its sessions."""
        self.enter()
        self.learn()
        self.extend(len(self.rows) * self.width)
        self.leave()
        for at in range(RUNNING + worker, len(self.cells), self.width):
            self.cells[at] = 0

    # --- what is on disk ---

    def restore(self, stored: Mapping[str, tuple[int, int]]) -> None:
        """Take what was stored: by account, the period's start and the octets used. What was already counted stays."""
        for name, (period, octets) in stored.items():
            at = self.row(name)
            self.enter()
            if not self.cells[at + PERIOD]:
                self.cells[at + PERIOD], self.cells[at + USED], self.cells[at + SAVED] = period, octets, octets
            self.leave()

    def merge(self, stored: Mapping[str, tuple[int, int]]) -> None:
        """Count what another process has stored since. Of a period that is not the current one nothing counts: then all
        that was used here is yet to be stored."""
        for name, (period, octets) in stored.items():
            at = self.row(name)
            if self.cells[at + PERIOD] == period and self.cells[at + SAVED] == octets:
                continue
            self.enter()
            cells = self.cells
            if not cells[at + PERIOD]:
                cells[at + PERIOD], cells[at + USED], cells[at + SAVED] = period, octets, octets
            elif cells[at + PERIOD] == period:
                cells[at + USED] += octets - cells[at + SAVED]
                cells[at + SAVED] = octets
            else:
                cells[at + SAVED] = 0
            self.leave()

    def unsaved(self) -> list[Used]:
        """What was used since it was stored."""
        self.enter()
        self.learn()
        end, width = len(self.rows) * self.width, self.width
        self.extend(end)
        cells = self.cells
        used, saved = list(cells[USED:end:width]), list(cells[SAVED:end:width])
        periods = list(cells[PERIOD:end:width]) if used != saved else []
        self.leave()
        rows = zip(self.rows, periods, used, saved, strict=False)
        return [Used(name, period, octets - before) for name, period, octets, before in rows if octets != before]

    def saved(self, rows: Iterable[Used]) -> None:
        """What `unsaved` gave is stored now."""
        cells, places = self.cells, self.rows
        self.enter()
        for name, period, octets in rows:
            at = places[name]
            if cells[at + PERIOD] == period:  # else another period has begun meanwhile, and nothing of it is stored
                cells[at + SAVED] += octets
        self.leave()
