"""One line for each flow: coloured on a terminal, plain elsewhere; nothing in it controls a terminal."""

from __future__ import annotations

import os
import select
import time
from collections import deque

from tabi.errors import printable
from tabi.intercept.record import Record
from tabi.observe.terminal import (
    BOLD,
    CYAN,
    DIM,
    GREEN,
    RED,
    YELLOW,
    painted,
    shown_size,
    shown_time,
    wants_colour,
)

WAITING = 256 << 10
"""Octets of lines that wait for a reader; more are lost, counted and reported."""

PIECE = 4096
"""PIPE_BUF (pipe(7)): a pipe that takes anything takes that much at once."""

PATIENCE = 1.0
"""Seconds that the end of the program waits for a reader that does not read."""

SHORTEST = 20
"""Characters of a URL that are shown on any terminal."""

BY_CLASS = {2: GREEN, 3: CYAN, 4: YELLOW, 5: RED}
"""The colour of a status."""


def format_record(record: Record, width: int | None = None, colour: bool = False) -> str:
    """A record in one line: method, URL, status, size, time, and what is special.

    Args:
        record: without its secrets, see `intercept.masking`.
        width: characters of a line; the URL is cut in its middle for that. None: it is not cut.
        colour: for a terminal.
    """
    parts: list[tuple[str, int | None]] = []
    if record.status:
        parts.append((str(record.status), BY_CLASS.get(record.status // 100)))
    if record.error is not None:
        parts.append((printable(record.error), RED))
    elif not record.status:
        parts.append(("no answer", RED))
    if record.status:
        parts.append((shown_size(record.response_size), None))
    parts.append((shown_time(record.seconds), DIM))
    if record.messages:
        parts.append((f"WebSocket: {len(record.messages)} messages", CYAN))
    if record.tags:
        parts.append((printable(f"[{', '.join(record.tags)}]"), YELLOW))
    method, url = printable(record.method), printable(record.url)
    if width is not None:
        url = cut(url, max(SHORTEST, width - len(method) - 1 - sum(len(text) + 1 for text, _ in parts)))
    return " ".join(painted(text, code, colour) for text, code in ((method, BOLD), (url, None), *parts))


def cut(text: str, room: int) -> str:
    """A text of at most so many characters, without its middle if it is longer."""
    if len(text) <= room:
        return text
    end = (room - 1) // 3
    return f"{text[: room - 1 - end]}…{text[len(text) - end :]}"


def width_of(fd: int) -> int | None:
    """Characters of a line of a terminal, None if it is none or does not say."""
    try:
        return os.get_terminal_size(fd).columns or None
    except OSError:
        return None


class Printer:
    """Writes lines to a descriptor, of which a reader that stopped reading holds up nobody.

    Args:
        fd: of standard output; it stays the caller's.
    """

    def __init__(self, fd: int = 1) -> None:
        self.fd = fd
        self.colour = wants_colour(fd)
        self.waiting: deque[bytes] = deque()
        self.size = 0
        self.lost = 0

    def print(self, record: Record) -> None:
        """Print a record, or have it wait. It is without its secrets. Never waits, never raises."""
        width = width_of(self.fd)
        data = (format_record(record, width, self.colour) + "\n").encode("utf-8", "backslashreplace")
        self.flush()
        if self.size + len(data) > WAITING:
            self.lost += 1
            return
        if self.lost:
            data = b"%d flows before this one are not printed, since nobody read\n" % self.lost + data
            self.lost = 0
        self.waiting.append(data)
        self.size += len(data)
        self.flush()

    def flush(self, seconds: float = 0) -> None:
        """Write what waits, as far as it is taken within so many seconds."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        while self.waiting:
            try:
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    return
                count = os.write(self.fd, self.waiting[0][:PIECE])
            except BlockingIOError:  # another process made it non-blocking
                if time.monotonic() >= deadline:
                    return
                time.sleep(0.01)
                continue
            except OSError:  # nobody reads any more
                self.waiting.clear()
                self.size = 0
                return
            self.size -= count
            if count < len(self.waiting[0]):
                self.waiting[0] = self.waiting[0][count:]
            else:
                self.waiting.popleft()

    def close(self) -> None:
        """Write what waits, within PATIENCE seconds."""
        self.flush(PATIENCE)
