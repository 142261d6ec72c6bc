"""A HAR file that grows: it is valid JSON after each entry, and written to in place, so that its length costs nothing.

It is only ever the user's own: created for them alone (0600), and never written to through a link.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from tabi.intercept.har_reader import MAX_ENTRY, HarError, HarReader, check_json

START = b'{"log":{"version":"1.2","creator":{"name":"tabi",'
VERSION: str = getattr(sys.modules["tabi"], "__version__", "0")  # which this room cannot import
HEADER = START + b'"version":"%b"},"entries":[' % VERSION.encode()
OWN = re.compile(re.escape(START) + rb'"version":"[^"\\]{1,50}"\},"entries":\[')
"""How a file begins that tabi has made."""
TRAILER = b"\n]}}\n"

MAX_HEAD, MAX_TAIL = 16 << 20, 65_536
"""Octets that may stand before and behind the entries in a file of another tool."""

FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class HarFile:
    """A file that gets entries, from this process and from others.

    Each entry takes the place of what closes the file, which is written behind it, in one write(2).

    Raises:
        OSError: it cannot be opened.
        HarError: it is not a HAR file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = open_file(path)
        self.size = -1
        """Octets of the file as we know it."""
        self.offset = 0
        """Where the next entry goes."""
        self.first = True
        """Whether that is the first one."""
        self.tail = TRAILER
        """What closes the file."""
        try:
            found = os.fstat(self.fd)
            self.place = (found.st_dev, found.st_ino)
            with self.locked():
                self.locate()
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)

    @property
    def moved(self) -> bool:
        """Whether another file, or none, has its name by now."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != self.place

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from writing to it."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def append(self, entry: bytes) -> None:
        """Write one entry. Raises OSError, also HarError; then the file is as it was before."""
        with self.locked():
            if os.fstat(self.fd).st_size != self.size:
                self.locate()
            data = b"".join((b"\n" if self.first else b",\n", entry, self.tail))
            try:
                pwrite_all(self.fd, data, self.offset)
            except OSError:
                self.restore()
                raise
            self.first = False
            self.offset += len(data) - len(self.tail)
            self.size = self.offset + len(self.tail)

    def restore(self) -> None:
        """Close the file behind the last whole entry."""
        self.size = -1  # not known, unless this works
        pwrite_all(self.fd, self.tail, self.offset)
        os.ftruncate(self.fd, self.offset + len(self.tail))
        self.size = self.offset + len(self.tail)

    def locate(self) -> None:
        """Find where the next entry goes; what a crash has left of the last one is cut off."""
        size = os.fstat(self.fd).st_size
        head = os.pread(self.fd, len(HEADER) + 100, 0)
        self.tail = TRAILER
        if OWN.match(head):
            self.locate_own(size)
        elif len(head) == size and (not head.strip(b" \t\r\n") or START.startswith(head[: len(START)])):
            self.offset, self.first = len(HEADER), True
            pwrite_all(self.fd, HEADER + TRAILER, 0)
            self.restore()
        else:
            self.locate_foreign(size)

    def locate_own(self, size: int) -> None:
        """The same for a file that tabi has begun: only its end is read."""
        end = os.pread(self.fd, len(TRAILER) + 1, max(0, size - len(TRAILER) - 1))
        if end in (b"}" + TRAILER, b"[" + TRAILER):
            self.size, self.offset, self.first = size, size - len(TRAILER), end[:1] == b"["
            return
        window = 1 << 20
        while True:
            start = max(0, size - window)
            lines = os.pread(self.fd, min(size, window), start).split(b"\n")
            at = size
            for index in range(len(lines) - 1, 0 if start else -1, -1):
                at -= len(lines[index]) + (index < len(lines) - 1)
                if whole := whole_line(lines[index], index + start == 0):
                    self.offset, self.first = at + whole, index + start == 0
                    self.restore()
                    return
            if not start or window > 2 * MAX_ENTRY:
                raise HarError("no whole entry at the end of this HAR file")
            window *= 2

    def locate_foreign(self, size: int) -> None:
        """The same for any other HAR file, which is read once."""
        reader = HarReader(self.fd)
        for entry in reader:
            try:
                check_json(entry)
            except (msgspec.DecodeError, RecursionError):
                raise HarError(f"not a HAR file: entry {reader.count} is not JSON") from None
        if not reader.whole and not reader.stack:
            raise HarError("not a HAR file: something follows the object")
        if reader.start > MAX_HEAD or (reader.whole and size - reader.end > MAX_TAIL):
            raise HarError(f"more than {MAX_HEAD} or {MAX_TAIL} octets before or behind the entries of this HAR file")
        tail = os.pread(self.fd, size - reader.end, reader.end) if reader.whole else TRAILER
        try:
            check_json(os.pread(self.fd, reader.start, 0).removeprefix(b"\xef\xbb\xbf") + tail)
        except msgspec.DecodeError:
            raise HarError("not a HAR file: not JSON before or behind its entries") from None
        if not reader.clean:
            raise HarError("not a HAR file: expected objects as entries")
        self.offset, self.first, self.tail = reader.end, not reader.count, tail
        if reader.whole:
            self.size = size
        else:
            self.restore()


def whole_line(line: bytes, is_first: bool) -> int:
    """How many octets of a line are a whole entry, or the beginning of the file; 0 if it is neither."""
    if is_first:
        return len(line) if OWN.fullmatch(line) else 0
    line = line.rstrip(b"\0\r ").removesuffix(b",")
    if not line.startswith(b'{"') or not line.endswith(b"}"):
        return 0
    try:
        check_json(line)
    except (msgspec.DecodeError, RecursionError):
        return 0
    return len(line)


def open_file(path: str, flags: int = FLAGS) -> int:
    """Open or create a file that is the user's alone. Raises OSError, and HarError if it is a link or not a file."""
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise HarError("a symbolic link, which is not written through") from None
        if exc.errno in (errno.ENXIO, errno.EISDIR):
            raise HarError("not a regular file") from None
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise HarError("not a regular file")
        if found.st_nlink > 1:
            raise HarError(f"{found.st_nlink} names (hard links), expected 1")
        if found.st_uid != os.geteuid():
            raise HarError(f"belongs to user {found.st_uid}, expected {os.geteuid()}")
        if found.st_mode & 0o077 and flags & os.O_RDWR:
            os.fchmod(fd, 0o600)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_file(path: str) -> None:
    """Check whether a file that is there may be one to write to; it is not changed. Raises OSError and HarError."""
    fd = open_file(path, FLAGS & ~(os.O_RDWR | os.O_CREAT))
    try:
        head = os.pread(fd, 4096, 0).strip(b" \t\r\n\xef\xbb\xbf")
    finally:
        os.close(fd)
    if head and not head.startswith(b"{"):
        raise HarError("not a HAR file, expected a JSON object")


def pwrite_all(fd: int, data: bytes, offset: int) -> None:
    """pwrite(2) until all is written, which is once if the disk has room. Raises OSError."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count
