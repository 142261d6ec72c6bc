"""Ledgers that are shared: the thread that stores what was used, and all workers of a supervisor.

The cells of several processes are memory that they share. What is read and then written stands between `enter` and
`leave`: a record lock of fcntl(2), which the kernel takes back when its holder dies, so that a killed worker blocks no
other one. Both together cost 1 us, and only with several workers and limits.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import threading
from collections.abc import MutableSequence
from typing import Any

from tabi.net.kernel import open_memory
from tabi.policy.clients import OPEN, ClientTable
from tabi.policy.ledger import RUNNING, Ledger

CELL = 8
FIRST_SIZE = mmap.PAGESIZE

END = b"\xff"
"""Stands behind each name: an octet that UTF-8 never has."""


class LocalLedger(Ledger):
    """The ledger of a process that has threads."""

    def __init__(self, workers: int = 1) -> None:
        super().__init__(workers)
        self.lock = threading.Lock()

    def enter(self) -> None:
        """See `Ledger.enter`."""
        self.lock.acquire()

    def leave(self) -> None:
        """See `Ledger.leave`."""
        self.lock.release()


class SharedLedger(LocalLedger):
    """A ledger to make before fork(2). Each worker calls `settle` after it.

    Args:
        workers: how many will share it.
        merges: whether the supervisor changes what workers count, see `Ledger.merge`.
    """

    def __init__(self, workers: int, merges: bool = False) -> None:
        super().__init__(workers)
        self.shared = workers > 1 or merges
        self.fd = open_memory("tabi-ledger")
        self.names = open_memory("tabi-accounts")  # one after the other, in the order of their rows
        self.known = 0  # octets of it that were read
        self.clients: SharedClientTable = SharedClientTable(workers)
        self.map()

    def settle(self, worker: int) -> None:
        """In a worker, with its number from 0: what it has running is counted in its own cell."""
        self.column = RUNNING + worker
        self.clients.column = OPEN + 2 * worker

    def forget_worker(self, worker: int) -> None:
        """See `Ledger.forget_worker`."""
        super().forget_worker(worker)
        self.clients.forget_worker(worker)

    def extend(self, cells: int) -> None:
        """See `Ledger.extend`. Another process may have done it already; cells keep what they have."""
        if cells > len(self.cells):
            size = max(FIRST_SIZE, 1 << (cells * CELL - 1).bit_length())
            if size > os.fstat(self.fd).st_size:
                os.ftruncate(self.fd, size)
            self.map()

    def map(self) -> None:
        """Have all cells that there are; their old memory is freed with the last reference to it."""
        size = os.fstat(self.fd).st_size
        cells: Any = memoryview(mmap.mmap(self.fd, size)).cast("q") if size else []
        self.cells = cells

    def learn(self) -> None:
        """See `Ledger.learn`."""
        if os.fstat(self.names).st_size > self.known:
            data = b""
            while part := os.pread(self.names, 1 << 24, self.known + len(data)):
                data += part
            *names, rest = data.split(END)  # a rest is of a worker that was killed while it wrote
            first = len(self.rows) * self.width
            self.rows.update(zip(map(bytes.decode, names), itertools.count(first, self.width), strict=False))
            self.known += len(data) - len(rest)

    def tell(self, name: str) -> None:
        """See `Ledger.tell`."""
        data = name.encode() + END
        os.pwrite(self.names, data, self.known)
        self.known += len(data)

    def enter(self) -> None:
        """See `Ledger.enter`."""
        super().enter()
        fcntl.lockf(self.fd, fcntl.LOCK_EX)

    def leave(self) -> None:
        """See `Ledger.leave`."""
        fcntl.lockf(self.fd, fcntl.LOCK_UN)
        super().leave()

    def close(self) -> None:
        """Give the memory back."""
        self.cells = []
        os.close(self.fd)
        os.close(self.names)
        self.clients.close()


class SharedClientTable(ClientTable):
    """A table to make before fork(2). Its memory is there only where something was written to it.

    Args:
        workers: how many will share it.
    """

    def __init__(self, workers: int) -> None:
        self.shared = workers > 1
        self.fd = open_memory("tabi-clients")
        super().__init__(workers, int.from_bytes(os.urandom(8)) | 1)

    def make_cells(self, count: int) -> MutableSequence[int]:
        """See `ClientTable.make_cells`."""
        os.ftruncate(self.fd, CELL * count)
        cells: MutableSequence[int] = memoryview(mmap.mmap(self.fd, CELL * count)).cast("q")  # type: ignore[assignment]
        return cells

    def enter(self) -> None:
        """See `ClientTable.enter`."""
        if self.shared:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)

    def leave(self) -> None:
        """See `ClientTable.leave`."""
        if self.shared:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the memory back."""
        self.cells = []
        os.close(self.fd)
