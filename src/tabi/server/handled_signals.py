"""Waiting for signals where there is no sigtimedwait(2): handlers note them, and only while `wait` sleeps."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from collections.abc import Collection, Sequence

from tabi.server.channel import Channel

NOTED = 4096
"""Octets read at a time: each is the number of a signal."""


class HandledSignals:
    """Takes the place of sigtimedwait(2) in the main thread. The signals are blocked before, and between two waits.

    Args:
        signals: what to wait for.
    """

    def __init__(self, signals: Collection[int]) -> None:
        self.signals = set(signals)
        self.source, self.sink = socket.socketpair()
        self.source.setblocking(False)
        self.sink.setblocking(False)
        self.noted: set[int] = set()
        for number in signals:
            signal.signal(number, note)
        signal.set_wakeup_fd(self.sink.fileno(), warn_on_full_buffer=False)

    def wait(self, seconds: float, channels: Sequence[Channel]) -> int | None:
        """Sleep until there is a signal, or a channel has something or takes what waits. Returns the signal, if any."""
        if not self.noted:
            waiting = [channel for channel in channels if channel.waiting]
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.signals)
            try:
                select.select([self.source.fileno(), *map(Channel.fileno, channels)], waiting, (), seconds)
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
            with contextlib.suppress(BlockingIOError):
                self.noted = self.signals.intersection(self.source.recv(NOTED))
        return self.noted.pop() if self.noted else None

    def close(self) -> None:
        """Note no more. The signals stay blocked."""
        forget_handlers()
        self.source.close()
        self.sink.close()


def note(number: int, frame: object) -> None:
    """The handler: the interpreter has written the number to the socket."""


def forget_handlers() -> None:
    """In a forked process: what comes is its own, and it decides anew what becomes of it."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if signal.getsignal(number) is note:
            signal.signal(number, signal.SIG_DFL)
