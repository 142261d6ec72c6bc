"""The access log: one JSON object a line for each session, when it ends.

The loop only formats and collects lines; a thread writes them in batches, so that a slow disk or a reader that stopped
reading holds up no session. Lines that cannot be written are lost and counted, and a warning gives their number.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from tabi.observe.observers import SessionObserver
from tabi.session import Drop, Session

log = logging.getLogger("tabi")

LIMIT = 4 << 20
"""Octets that may wait for the writer; more lines are lost."""

DELAY = 0.2
"""Seconds that a line waits for others to be written with."""

ATOMIC = 4096
"""PIPE_BUF (pipe(7)): a write up to here is not mixed with those of another worker on the same pipe."""

FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""How a file is opened; O_NONBLOCK avoids the wait for a FIFO's reader, and has no effect on a file."""

PATIENCE = 1.0
"""Seconds that the end of the program waits for a reader that does not read."""


class Record(msgspec.Struct):
    """One line, in the order of its keys."""

    time: str
    id: str
    listener: str
    protocol: str | None
    command: str | None
    client: str
    user: str | None
    host: str | None
    port: int | None
    address: str | None
    rule: str | None
    via: str | None
    member: str | None
    reply: int | None
    error: str | None
    up: int
    down: int
    seconds: float
    connect_ms: float | None
    close: str


class AssociationRecord(Record):
    """The line of an association: the keys of all lines, then its own."""

    datagrams_up: int
    datagrams_down: int
    drops: dict[Drop, int]


class SniffedRecord(Record):
    """The line of a session that was sniffed, or looked into: the keys of all lines, then its own, where they mean
    something."""

    sniffed: str | msgspec.UnsetType = msgspec.UNSET
    sni: str | msgspec.UnsetType | None = msgspec.UNSET
    alpn: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    ja3: str | msgspec.UnsetType = msgspec.UNSET
    ja4: str | msgspec.UnsetType = msgspec.UNSET
    intercepted: str | msgspec.UnsetType = msgspec.UNSET
    pinned: bool | msgspec.UnsetType = msgspec.UNSET


FAULTY: dict[type[Record], Any] = {
    kind: msgspec.defstruct(f"Faulty{kind.__name__}", [("faults", tuple[str, ...])], bases=(kind,), kw_only=True)
    for kind in (Record, AssociationRecord, SniffedRecord)
}
"""Of each kind the line of a session that was drawn for ``[[distort]]`` entries: with their names."""

encode = msgspec.json.Encoder().encode


class Clock:
    """The time of day as RFC 3339 in UTC with milliseconds; one text serves all calls within its millisecond."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.second = -1
        self.until_second = ""
        self.millisecond = -1
        self.text = ""

    def __call__(self) -> str:
        millisecond = int(self.now() * 1000)
        if millisecond != self.millisecond:
            self.millisecond = millisecond
            second, rest = divmod(millisecond, 1000)
            if second != self.second:
                self.second = second
                self.until_second = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self.text = f"{self.until_second}{rest:03}Z"
        return self.text


def format_line(session: Session, when: str, prefix: str, now: float) -> bytes:
    """One line of the log, with its end. ``now`` is of the clock of ``session.started``, in seconds."""
    destination, address, connect = session.destination, session.address, session.connect_seconds
    client = session.client
    dialled = str(address) if address else None
    record = Record(
        when,
        f"{prefix}{session.number:x}",
        session.listener,
        session.protocol,
        session.command,
        str(client),
        session.user,
        str(destination.host) if destination else None,
        destination.port if destination else None,
        dialled,
        session.rule,
        session.via,
        session.member,
        session.reply_code,
        session.error,
        session.up,
        session.down,
        int((now - session.started) * 1000) / 1000,
        None if connect is None else int(connect * 1e6) / 1000,
        session.close,
    )
    if session.drops is not None:
        record = AssociationRecord(
            **msgspec.structs.asdict(record),
            datagrams_up=session.datagrams_up,
            datagrams_down=session.datagrams_down,
            drops=session.drops,
        )
    elif session.sniffed is not None or session.intercepted is not None:
        record = looked_into(record, session)
    if session.distorted:
        labels = tuple([drawn.entry.distort.label for drawn in session.distorted])
        record = FAULTY[type(record)](**msgspec.structs.asdict(record), faults=labels)
    try:
        line = encode(record) + b"\n"
    except UnicodeEncodeError:  # lone surrogates: a user name that is not text, or any name from a program
        for name in record.__struct_fields__:
            value = getattr(record, name)
            if isinstance(value, str):
                setattr(record, name, value.encode("utf-8", "backslashreplace").decode())
        line = encode(record) + b"\n"
    return line if line.isascii() and b"\x7f" not in line else escape_json(line.decode()).encode()


def looked_into(record: Record, session: Session) -> SniffedRecord:
    """The line with what was found out by looking at what the session carries."""
    line = SniffedRecord(**msgspec.structs.asdict(record))
    sniffed = session.sniffed
    if sniffed is not None:
        line.sniffed = sniffed.protocol
        if sniffed.ja3 is not None and sniffed.ja4 is not None:
            line.sni, line.alpn, line.ja3, line.ja4 = sniffed.sni, sniffed.alpn, sniffed.ja3, sniffed.ja4
    if session.intercepted is not None:
        line.intercepted = session.intercepted
    if session.pinned:
        line.pinned = True
    return line


UNUSUAL = re.compile(r"[^\n -~]")


def escape_json(text: str) -> str:
    """JSON in which what controls a terminal or a log, or cannot be seen, is escaped; its meaning stays the same."""
    return UNUSUAL.sub(escape_character, text)


def escape_character(found: re.Match[str]) -> str:
    """One character as JSON escapes it, if it cannot be seen."""
    units = found[0].encode("utf-16-be", "surrogatepass").hex()
    return found[0] if found[0].isprintable() else "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class Output(Protocol):
    """Where lines go. Called from the writer's thread only."""

    def write(self, lines: list[bytes]) -> int:
        """Write as many lines as can be; returns how many, or raises OSError."""

    def close(self) -> None:
        """Release its resources."""


class DescriptorOutput:
    """Standard output or error, which we must not close or make non-blocking."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, lines: list[bytes]) -> int:
        """Write line by line in pieces that pipes keep whole. Blocks while a reader does not read."""
        for piece in pieces(lines):
            write_all(self.fd, piece)
        return len(lines)

    def close(self) -> None:
        """Nothing to close."""


class FileOutput:
    """A file, opened for appending; opened again when it was moved away, as log rotation does."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        self.place = (-1, -1)
        self.torn = False
        self.open()

    def open(self) -> None:
        """Open or create the file, readable for its owner and group only."""
        self.fd = os.open(self.path, FLAGS, 0o640)
        found = os.fstat(self.fd)
        self.place = (found.st_dev, found.st_ino)

    def write(self, lines: list[bytes]) -> int:
        """Append all lines in one write, where the disk has room."""
        try:
            found = os.stat(self.path)
            moved = (found.st_dev, found.st_ino) != self.place
        except OSError:
            moved = True
        if moved:
            self.close()
        if self.fd < 0:
            self.open()
        if stat.S_ISREG(os.fstat(self.fd).st_mode):
            # A disk that filled up may have taken half a line: the next one must begin a new line.
            torn, self.torn = self.torn, True
            write_all(self.fd, b"\n" * torn + b"".join(lines))
            self.torn = False
        else:
            for piece in pieces(lines):
                write_all(self.fd, piece)
        return len(lines)

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SyslogOutput:
    """The system's log, through syslog(3)."""

    def __init__(self) -> None:
        import syslog

        self.syslog = syslog
        syslog.openlog("tabi", syslog.LOG_PID, syslog.LOG_DAEMON)

    def write(self, lines: list[bytes]) -> int:
        """One message a line."""
        for line in lines:
            self.syslog.syslog(self.syslog.LOG_INFO, line.decode().rstrip("\n"))
        return len(lines)

    def close(self) -> None:
        """End the connection to it."""
        self.syslog.closelog()


def pieces(lines: list[bytes]) -> list[bytes]:
    """Join lines to pieces of at most ATOMIC octets; a longer line is a piece of its own."""
    found, size = [[]], 0  # type: list[list[bytes]], int
    for line in lines:
        if found[-1] and size + len(line) > ATOMIC:
            found.append([])
            size = 0
        found[-1].append(line)
        size += len(line)
    return [b"".join(piece) for piece in found if piece]


def write_all(fd: int, data: bytes) -> None:
    """write(2) until all is written. Raises OSError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # another process made our standard output non-blocking
            select.select((), (fd,), ())


def open_output(target: str) -> Output:
    """``stdout``, ``stderr``, ``syslog`` or a path. Raises OSError where a file cannot be opened."""
    if target == "stdout":
        return DescriptorOutput(sys.__stdout__.fileno() if sys.__stdout__ else 1)
    if target == "stderr":
        return DescriptorOutput(sys.__stderr__.fileno() if sys.__stderr__ else 2)
    return SyslogOutput() if target == "syslog" else FileOutput(target)


def check_output(target: str) -> None:
    """Check whether `open_output` could open it, without creating a file. Raises OSError."""
    if target in ("stdout", "stderr", "syslog", "none"):
        return
    if os.path.exists(target):
        os.close(os.open(target, FLAGS & ~os.O_CREAT))
        return
    folder = os.path.dirname(target) or "."
    if not os.access(folder, os.W_OK | os.X_OK):
        os.stat(folder)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class AccessLog(SessionObserver):
    """Collects lines and has them written.

    Args:
        output: where they go; closed by `close`.
        prefix: of every id, so that those of several workers differ.
        call_later: the loop's; asked once for each batch.
    """

    def __init__(self, output: Output, prefix: str, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self.output = output
        self.prefix = prefix
        self.call_later = call_later
        self.clock = Clock()
        self.lines: list[bytes] = []
        self.size = 0
        self.lost = 0
        self.lost_said = 0
        self.scheduled = False
        self.closed = False
        self.wanted = threading.Event()
        self.idle = threading.Event()
        self.idle.set()
        self.batch: list[bytes] = []
        self.under_way = 0
        self.thread = threading.Thread(target=self.write_batches, name="tabi-access-log", daemon=True)
        self.thread.start()

    def ended(self, session: Session) -> None:
        """See `SessionObserver`."""
        if session.silent is False:
            self.add(session, time.monotonic())

    def add(self, session: Session, now: float) -> None:
        """Take the line of a session that has ended."""
        if self.size >= LIMIT:
            self.lost += 1
            return
        line = format_line(session, self.clock(), self.prefix, now)
        self.lines.append(line)
        self.size += len(line)
        if not self.scheduled:
            self.scheduled = True
            self.call_later(DELAY, self.flush)

    def flush(self) -> None:
        """Hand the collected lines to the writer, unless it still writes the last batch."""
        self.scheduled = False
        if not self.idle.is_set():
            if self.lines and not self.closed:
                self.scheduled = True
                self.call_later(DELAY, self.flush)
            return
        if self.lost > self.lost_said:
            log.warning("access log: %d lines lost so far", self.lost)
            self.lost_said = self.lost
        if self.lines:
            self.batch, self.lines, self.size = self.lines, [], 0
            self.under_way = len(self.batch)
            self.idle.clear()
            self.wanted.set()

    def write_batches(self) -> None:
        """The writer's thread."""
        failing = False
        while True:
            self.wanted.wait()
            self.wanted.clear()
            batch, self.batch = self.batch, []
            try:
                if batch:
                    self.output.write(batch)
                    failing = False
            except OSError as exc:
                self.lost += len(batch)
                if not failing:
                    log.error("access log: %s; lines are lost until it can be written again", exc.strerror or exc)
                failing = True
            except Exception:
                self.lost += len(batch)
                log.exception("access log: the writer failed")
            self.idle.set()
            if self.closed and not batch:
                return

    def close(self) -> None:
        """Write what is left and end the thread, each within PATIENCE seconds."""
        self.closed = True
        done = self.idle.wait(PATIENCE)
        if done:
            self.flush()
            done = self.idle.wait(PATIENCE)
        if not done:
            self.lost += self.under_way + len(self.lines)
            self.lines = []
        self.wanted.set()
        if done:
            self.thread.join(PATIENCE)
        if self.lost > self.lost_said:
            log.warning("access log: %d lines lost", self.lost)
        if not self.thread.is_alive():
            self.output.close()
