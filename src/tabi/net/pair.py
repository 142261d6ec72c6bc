"""Two sockets that are the ends of one TCP connection within this machine.

A socketpair(2) cannot carry a reset: a reader would take a broken connection for an orderly end. This pair can.
"""

from __future__ import annotations

import errno
import socket

HERE = ("127.0.0.1", 0)
STRANGERS = 16
"""Connections of other processes that are refused before `open_pair` gives up."""

SECONDS = 1.0
"""Until the kernel has joined its own two ends, which takes microseconds."""

QUIET, INTERVAL, PROBES = 60, 20, 3
"""Seconds until the kernel asks whether the other end is still there, seconds between two questions, and how many. A
socket that is closed after it has sent its end says nothing more, and is forgotten by the kernel a minute later."""


def open_pair() -> tuple[socket.socket, socket.socket]:
    """Open one: both ends non-blocking. The first end notices in time that the second one is gone. Raises OSError."""
    with socket.create_server(HERE, backlog=STRANGERS) as listener:
        listener.settimeout(SECONDS)
        theirs = socket.create_connection(listener.getsockname(), SECONDS)
        try:
            ours = accept(listener, theirs.getsockname())
        except BaseException:
            theirs.close()
            raise
    for sock in (ours, theirs):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", QUIET), ("TCP_KEEPINTVL", INTERVAL), ("TCP_KEEPCNT", PROBES)):
        if hasattr(socket, name):
            ours.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return ours, theirs


def accept(listener: socket.socket, expected: object) -> socket.socket:
    """The connection from ``expected``: other processes on this machine could connect first. Raises OSError."""
    for _ in range(STRANGERS):
        sock, peer = listener.accept()
        if peer == expected:
            return sock
        sock.close()
    raise OSError(errno.ECONNABORTED, "other processes connect in place of our own socket")
