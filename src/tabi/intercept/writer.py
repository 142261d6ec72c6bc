"""Writes records: entries of HAR files, and lines. It may wait for a disk, so it has a thread or a process."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from tabi.intercept.har import encode_entry
from tabi.intercept.har_file import HarFile
from tabi.intercept.har_reader import HarError
from tabi.intercept.printing import Printer
from tabi.intercept.recorder import Order, without_content

log = logging.getLogger("tabi")

MAX_ENTRY = 32 << 20
"""Octets of an entry; one that would be longer has no content."""

MAX_FILES = 16
"""HAR files that are open at a time."""

WAITING = 16 << 20
"""Octets of records that may wait for a writer; more are lost, counted and reported."""

QUIET = 10.0
"""Seconds for which it is not said again that a file cannot be written."""

RETRY = 0.1
"""Seconds until it is tried again to print what was not read."""

PATIENCE = 2.0
"""Seconds that the end of the program waits for a writer."""


class Fault:
    """A file that cannot be written, or could not be: what was said of that, and what was not said yet."""

    def __init__(self) -> None:
        self.lost = 0
        self.said = -QUIET
        self.lasts = False
        """Whether it was said that it cannot be written, and not that it can be again."""


class Writer:
    """Does what orders say, one after the other.

    Args:
        fd: where lines go.
        clock: seconds.
    """

    def __init__(self, fd: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.printer = Printer(fd)
        self.files: OrderedDict[str, HarFile] = OrderedDict()
        self.faults: dict[str, Fault] = {}

    def write(self, order: Order) -> None:
        """Write one record. What fails is logged once, until it works again; never raises."""
        try:
            record = order.prepared()
            if order.print:
                self.printer.print(record)
            if order.har is not None:
                entry = encode_entry(record)
                if len(entry) > MAX_ENTRY:
                    entry = encode_entry(without_content(order).prepared())
                self.append(order.har, entry)
        except Exception:
            log.exception("a record could not be written")

    @property
    def patience(self) -> float | None:
        """Seconds after which `flush` is to be called if nothing comes; None: there is no need."""
        return RETRY if self.printer.waiting else None

    def flush(self) -> None:
        """Print what waits for a reader."""
        self.printer.flush()

    def append(self, path: str, entry: bytes) -> None:
        """Append to a file."""
        try:
            self.open(path).append(entry)
        except (OSError, HarError) as exc:
            self.failed(path, exc)
        else:
            if path in self.faults:
                self.worked(path, self.faults[path])

    def failed(self, path: str, exc: OSError | HarError) -> None:
        """A flow is lost. On a disk that is almost full some flows find room and others do not: not each is said."""
        fault = self.faults.setdefault(path, Fault())
        fault.lost += 1
        if not fault.lasts and self.clock() - fault.said >= QUIET:
            text = exc.strerror if isinstance(exc, OSError) else exc
            log.error("%s: %s; flows are lost until it can be written", path, text)
            fault.lasts, fault.said = True, self.clock()
        if isinstance(exc, HarError) and path in self.files:
            self.files.pop(path).close()

    def worked(self, path: str, fault: Fault) -> None:
        """A flow was written to a file that could not be written before."""
        if fault.lost and (fault.lasts or self.clock() - fault.said >= QUIET):
            log.warning("%s: can be written again, flows lost: %d", path, fault.lost)
            fault.lost, fault.lasts = 0, False

    def open(self, path: str) -> HarFile:
        """The file of this name, open. Raises OSError and HarError."""
        file = self.files.get(path)
        if file is not None and file.moved:
            self.files.pop(path).close()
            file = None
        if file is None:
            file = self.files[path] = HarFile(path)
            if len(self.files) > MAX_FILES:
                self.files.popitem(last=False)[1].close()
        self.files.move_to_end(path)
        return file

    def close(self) -> None:
        """Print what waits, and close all files."""
        self.printer.close()
        for path, fault in self.faults.items():
            if fault.lost:
                log.warning("%s: flows lost: %d", path, fault.lost)
        self.faults.clear()
        while self.files:
            self.files.popitem()[1].close()


class ThreadSink:
    """Has a thread write, which starts with the first order: for a server that a program embeds."""

    def __init__(self, bound: int = WAITING, fd: int = 1) -> None:
        self.bound = bound
        self.fd = fd
        self.size = 0
        self.lost = 0
        self.orders: deque[tuple[Order, int]] = deque()
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None
        self.closed = False

    def take(self, order: Order) -> None:
        """See `Sink`."""
        weight = order.record.weight
        with self.changed:
            if self.closed or (self.size and self.size + weight > self.bound):
                self.lost += 1
                return
            self.orders.append((order, weight))
            self.size += weight
            if self.thread is None:
                self.thread = threading.Thread(target=self.run, name="tabi-records", daemon=True)
                self.thread.start()
            self.changed.notify()

    def run(self) -> None:
        """The thread: write until it is closed and nothing is left."""
        writer = Writer(self.fd)
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.orders or self.closed, writer.patience)
                if not self.orders and self.closed:
                    break
                order, weight = self.orders.popleft() if self.orders else (None, 0)
                lost, self.lost = self.lost, 0
            if lost:
                log.warning("flows lost, since they came faster than they could be written: %d", lost)
            if order is None:
                writer.flush()
                continue
            writer.write(order)
            with self.changed:
                self.size -= weight
        writer.close()

    async def aclose(self) -> None:
        """See `Sink`."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Write what was taken, within PATIENCE seconds."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        if self.thread is not None:
            self.thread.join(PATIENCE)
        if self.lost:
            log.warning("flows lost, since they came faster than they could be written: %d", self.lost)
            self.lost = 0
