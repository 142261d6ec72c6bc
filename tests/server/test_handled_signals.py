"""Signals without sigtimedwait: they come while it sleeps, not before, and a forked process has its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from conftest import PATIENCE
from tabi.server.channel import make_channel
from tabi.server.handled_signals import HandledSignals, forget_handlers, note

SIGNALS = {signal.SIGTERM, signal.SIGHUP}


@pytest.fixture
def handled() -> Iterator[HandledSignals]:
    """Two signals, blocked as a supervisor has them; all is as before behind the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    handled = HandledSignals(SIGNALS)
    yield handled
    handled.close()
    assert all(signal.getsignal(number) == signal.SIG_DFL for number in SIGNALS)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_come_one_by_one_and_wait_for_it(handled: HandledSignals) -> None:
    """Those that came while it did not sleep are not lost, and an equal one that waits is not told twice."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert {handled.wait(PATIENCE, ()), handled.wait(PATIENCE, ())} == SIGNALS
    assert handled.wait(0, ()) is None
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= SIGNALS


def test_it_sleeps_no_longer_than_it_is_told(handled: HandledSignals) -> None:
    """None says that no signal came."""
    began = time.monotonic()
    assert handled.wait(0.01, ()) is None
    assert time.monotonic() - began >= 0.01


def test_a_channel_wakes_it(handled: HandledSignals) -> None:
    """By a message, and by room for one that waits."""
    one, other = make_channel()
    other.send({"a": 1})
    began = time.monotonic()
    assert handled.wait(PATIENCE, (one,)) is None
    assert time.monotonic() - began < PATIENCE
    assert one.next_body() == {"a": 1}
    while one.send({"a": "x" * 30_000}) and not one.waiting:
        pass
    while other.next_body() is not None:
        pass
    began = time.monotonic()
    assert handled.wait(PATIENCE, (one,)) is None
    assert time.monotonic() - began < PATIENCE
    one.close()
    other.close()


def test_a_forked_process_has_its_own_signals(handled: HandledSignals) -> None:
    """SIGTERM ends it, and nobody else hears of that."""
    pid = os.fork()
    if not pid:
        forget_handlers()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert handled.wait(0, ()) is None
    assert signal.getsignal(signal.SIGTERM) is note
