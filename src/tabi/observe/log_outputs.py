"""Where lines of the access log go: standard output, files, sockets. Each is written to by one thread."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
from typing import Any, Protocol

ATOMIC = 4096
"""PIPE_BUF (pipe(7)): a write up to here is not mixed with those of another worker on the same pipe."""

FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""How a file is opened; O_NONBLOCK avoids the wait for a FIFO's reader, and has no effect on a file."""


TIMEOUT = 0.5
"""Seconds that a socket is waited for whose reader does not read."""


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


class DatagramOutput:
    """A socket that takes a datagram for each line, such as that of a syslog daemon, which may come and go.

    A unix socket whose reader does not read is waited for, TIMEOUT seconds for each batch; UDP is never waited for, and
    nobody says what is lost on its way.

    Args:
        family: of the socket.
        address: where to send to; a unix socket must be there.

    Raises:
        OSError: it is not.
    """

    def __init__(self, family: int, address: str | tuple[Any, ...]) -> None:
        self.address = address
        if isinstance(address, str):
            check_socket(address)
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        # poll(2) does not know whether there is room at the end of a socket that is not connected: send(2) has to wait.
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 0, int(TIMEOUT * 1e6)))

    def write(self, lines: list[bytes]) -> int:
        """Send line by line until one does not go out; one that is too large is left out."""
        written = 0
        for line in lines:
            try:
                self.send(line)
            except OSError as exc:
                if exc.errno == errno.EMSGSIZE:
                    continue
                if written:
                    break
                if exc.errno == errno.EAGAIN:
                    raise BlockingIOError(exc.errno, f"nobody reads {self.address}") from None
                raise
            written += 1
        return written

    def send(self, line: bytes) -> None:
        """Send one line. Raises OSError."""
        self.sock.sendto(line, self.address)

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def check_socket(path: str) -> None:
    """Raise OSError if nobody reads datagrams from a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        probe.connect(path)


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
