"""Pipes that are soon full."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator


@contextlib.contextmanager
def small_pipe() -> Iterator[tuple[int, int]]:
    """A pipe as small as can be: its reading and its writing end, closed at the end."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for fd in (reading, writing):
        try:
            os.close(fd)
        except OSError:  # the test closed it
            continue


def fill(writing: int) -> int:
    """Fill a pipe; returns with how many octets."""
    os.set_blocking(writing, False)
    filled = 0
    try:
        while True:
            filled += os.write(writing, b"#" * 512)
    except BlockingIOError:
        os.set_blocking(writing, True)
    return filled


def read_exactly(reading: int, size: int) -> bytes:
    """Read so many octets from a pipe."""
    found = b""
    while len(found) < size:
        data = os.read(reading, size - len(found))
        assert data
        found += data
    return found
