"""SIGHUP, SIGUSR1 and SIGUSR2: by default they end a process, and here they never do.

The program calls `hold` before it imports anything else, so that this module imports little.
"""

from __future__ import annotations

import signal

IGNORED = (signal.SIGUSR1, signal.SIGUSR2)
found: dict[int, object] = {}
"""The handlers of these when the program began, which `restore` sets again."""


def hold() -> None:
    """Ignore SIGUSR1 and SIGUSR2, and keep SIGHUP waiting: `tabi serve` takes one that comes while it starts for a
    reload, as one that comes later. Threads and processes that are started inherit both."""
    found[signal.SIGHUP] = signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    for number in IGNORED:
        found[number] = signal.signal(number, signal.SIG_IGN)


def restore() -> None:
    """Undo `hold`, in a process that will execute another program. A SIGHUP that waits is then delivered."""
    for number in IGNORED:
        if number in found:
            signal.signal(number, signal.SIG_IGN if found[number] == signal.SIG_IGN else signal.SIG_DFL)
    if found.get(signal.SIGHUP) is False:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def ignore(*others: int) -> None:
    """Ignore the three signals, and others, in a process that `tabi serve` has started."""
    for number in (signal.SIGHUP, *IGNORED, *others):
        signal.signal(number, signal.SIG_IGN)
