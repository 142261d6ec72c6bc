"""The ledger: what each account has running and has used, in cells of 64 bits. No I/O: shared memory is handed in.

An account is one for whom limits are: a user, a group, a network of clients, the whole server. It has a row:

    RATE UP DOWN          the state of its three buckets, nanoseconds of the monotonic clock (see `limits.py`)
    USED PERIOD SAVED     octets used in the quota's period, the second since 1970 when that began, and how many of
                          them are on disk
    RUNNING, ...          sessions under way, a cell for each worker: what a worker that died had is taken back

Rows go by names, so that a reload finds what was counted before.
"""

from __future__ import annotations

from collections.abc import MutableSequence

RATE, UP, DOWN, USED, PERIOD, SAVED, RUNNING = range(7)


class Ledger:
    """The ledger of one thread. Those of several, and of several processes, are subclasses (`server/ledger.py`).

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

    def row(self, name: str) -> int:
        """The index of the first cell of an account's row, which is made with zeros where there is none."""
        at = self.rows.get(name)
        if at is None:
            at = self.rows[name] = len(self.rows) * self.width
            self.extend(at + self.width)
        return at

    def extend(self, cells: int) -> None:
        """Have at least so many cells."""
        self.cells.extend([0] * (cells - len(self.cells)))

    def enter(self) -> None:
        """Keep others out, where there are any: threads, other processes."""

    def leave(self) -> None:
        """Let them in again."""

    def running(self, at: int) -> int:
        """Sessions under way of the account whose row begins at ``at``, in all processes."""
        if self.width == RUNNING + 1:
            return self.cells[at + RUNNING]
        return sum(self.cells[at + RUNNING : at + self.width])

    def forget_worker(self, worker: int) -> None:
        """A worker is gone, and all that it had running."""
        for at in self.rows.values():
            self.cells[at + RUNNING + worker] = 0
