"""Fixtures for the tests of the server and its processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """What a supervisor, or a child that is started, does to this process' signals is undone."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = {number: signal.getsignal(number) for number in (signal.SIGIO, signal.SIGCHLD)}
    yield
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # one that waits is forgotten
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
