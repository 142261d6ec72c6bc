"""Pipes for splice(2), pooled: making one and sizing it costs three system calls, and they are scarce."""

from __future__ import annotations

import fcntl
import os

from tabi.net.kernel import has_splice

PIPE_SIZE = 1 << 20
"""Octets a pipe is asked to hold. Unprivileged users share pipe-user-pages-soft (64 MiB by default, pipe(7))."""

KEPT = 64
"""Empty pipes kept for the next flow that wants one."""

BUFFER_SIZE = 1 << 16


class Pipe:
    """One pipe: the descriptors, and how many octets are in it."""

    __slots__ = ("held", "read_end", "write_end")

    def __init__(self, read_end: int, write_end: int) -> None:
        self.read_end = read_end
        self.write_end = write_end
        self.held = 0

    def close(self) -> None:
        """Give both descriptors back."""
        os.close(self.read_end)
        os.close(self.write_end)


class PipePool:
    """What the flows of one reactor share: the pipes, and the buffer of those that copy.

    Args:
        limit: pipes in existence at the same time; 0 if there is no splice: then every flow copies.
    """

    __slots__ = ("buffer", "idle", "lent", "limit", "view")

    def __init__(self, limit: int) -> None:
        self.limit = limit if limit and has_splice() else 0
        self.lent = 0
        self.idle: list[Pipe] = []
        self.buffer = bytearray(BUFFER_SIZE)
        self.view = memoryview(self.buffer)

    def take(self) -> Pipe | None:
        """Return an empty pipe, or None if none can be made: then copying goes on."""
        if self.idle:
            self.lent += 1
            return self.idle.pop()
        if self.lent >= self.limit:
            return None
        try:
            read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # EMFILE, ENFILE
            return None
        try:
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:  # EPERM over the user's limit: it works at its usual size too
            pass
        self.lent += 1
        return Pipe(read_end, write_end)

    def give(self, pipe: Pipe) -> None:
        """Take a pipe back; one that still holds octets of a broken flow is closed."""
        self.lent -= 1
        if pipe.held or len(self.idle) >= KEPT:
            pipe.close()
        else:
            self.idle.append(pipe)

    def close(self) -> None:
        """Close the unused pipes."""
        while self.idle:
            self.idle.pop().close()
