"""Running what a command does in tabi's own loop, so that Ctrl-C always ends it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator

from tabi.net.reactor import make_loop


@contextlib.contextmanager
def make_runner() -> Iterator[asyncio.Runner]:
    """An `asyncio.Runner` for the main thread, closed at the end.

    Python runs the handler of a signal between two steps of its own. A signal that comes just before the loop waits,
    or that the kernel gives to another thread, would not end that wait. So each signal writes to a socket that the
    loop reads (`signal.set_wakeup_fd`).
    """
    reader, writer = socket.socketpair()
    with reader, writer, asyncio.Runner(loop_factory=make_loop) as runner:
        reader.setblocking(False)
        writer.setblocking(False)
        runner.get_loop().add_reader(reader, reader.recv, 64)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        try:
            yield runner
        finally:
            signal.set_wakeup_fd(before)
            runner.get_loop().remove_reader(reader)
