"""The processes that help the supervisor: what they have and have not, and when each is started again."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from processes import PATIENCE, is_running, name_of, wait_for
from tabi.server.channel import Channel
from tabi.server.child import FIRST_DELAY, LAST_DELAY, STEADY, Child, Place, close_others


def tell_and_wait(channel: Channel) -> None:
    """Tell what this process has, and stay until the channel ends."""
    fds = [int(name) for name in os.listdir("/proc/self/fd")]
    open_fds = [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}") and fd > 2 and fd != channel.fileno()]
    ignored = [
        number.name
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM, signal.SIGIO)
        if signal.getsignal(number) is signal.SIG_IGN
    ]
    blocked = len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    channel.send({"fds": open_fds, "ignored": ignored, "blocked": blocked})
    while True:
        try:
            channel.receive_within(PATIENCE)
        except EOFError:
            return


def test_it_has_only_what_it_needs() -> None:
    """The channel, the standard streams and what it keeps, no socket of the server; signals to groups end it not."""
    with socket.socket() as kept, socket.socket() as other:
        child = Child("tabi-test", tell_and_wait, lambda: (kept.fileno(),))
        child.keep_up(0)
        try:
            assert child.pid is not None
            assert child.channel is not None
            message = child.channel.receive_within(PATIENCE)
            assert message is not None
            assert message.body["fds"] == [kept.fileno()]
            assert other.fileno() not in message.body["fds"]
            assert message.body["ignored"] == ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGTERM", "SIGIO"]
            assert message.body["blocked"] == 0
            assert name_of(child.pid) == "tabi-test"
            pid = child.pid
        finally:
            child.close()
        assert not is_running(pid)
        assert child.pid is None


def test_it_is_started_again_when_it_dies(caplog: pytest.LogCaptureFixture) -> None:
    """After a while, and it is said; until then it is left alone."""
    child = Child("tabi-test", tell_and_wait)
    child.keep_up(child.due)
    try:
        first = child.pid
        assert first is not None
        child.reap(child.started)
        assert child.pid == first
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: not is_running(first), "the child to die")
        died = child.started
        child.reap(died)
        assert child.pid is None
        assert f"tabi-test {first} was killed by signal 9; another starts in 0.1 s" in caplog.text
        child.keep_up(died + FIRST_DELAY / 2)
        assert child.pid is None
        child.keep_up(died + FIRST_DELAY)
        assert child.pid not in (None, first)
    finally:
        child.close()


def test_a_fork_that_fails_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no reason to end the server; both ends of the channel are closed (the fixtures look for those)."""

    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    child = Child("tabi-test", tell_and_wait)
    child.keep_up(100.0)
    assert child.pid is None
    assert "tabi-test could not be started: Resource temporarily unavailable; another starts in 0.1 s" in caplog.text
    child.close()


def test_a_failure_ends_it() -> None:
    """It never returns into the program that it was forked from."""

    def fail(channel: Channel) -> None:
        raise RuntimeError("a mistake")

    child = Child("tabi-test", fail)
    child.start()
    assert child.pid is not None
    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == 1
    child.empty()


def test_one_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the program waits for it, but not for long."""
    monkeypatch.setattr("tabi.server.child.PATIENCE", 0.01)
    child = Child("tabi-test", lambda channel: signal.pause())
    child.start()
    pid = child.pid
    assert pid is not None
    child.close()
    assert not is_running(pid)


def test_the_back_off() -> None:
    """Doubled each time up to a limit, and forgiven to one that ran for a while."""
    place = Place()
    delays = [place.postpone(0.0) for _ in range(12)]
    assert delays[:4] == [FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY, 8 * FIRST_DELAY]
    assert delays[-1] == LAST_DELAY
    place.started = 100.0
    assert place.postpone(100.0 + STEADY) == FIRST_DELAY
    assert place.due == 100.0 + STEADY + FIRST_DELAY


@pytest.mark.parametrize("kept", [{0, 1, 2}, {1, 5}, {0}, {2, 3, 9}])
def test_close_others_closes_all_but_those(kept: set[int]) -> None:
    """Whichever are kept: the first, neighbours, none in between."""
    ends = [os.pipe() for _ in range(8)]
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.dup2(writing, 100)
            close_others({*kept, 100})
            left = [fd for fd in range(100) if os.path.exists(f"/proc/self/fd/{fd}")]
            os.write(100, " ".join(map(str, left)).encode())
        finally:
            os._exit(0)
    try:
        os.close(writing)
        text = os.read(reading, 1000).decode()
        os.waitpid(pid, 0)
    finally:
        for fd in (reading, *(fd for pair in ends for fd in pair)):
            os.close(fd)
    assert {int(fd) for fd in text.split()} <= kept
    assert "0" in text.split() or 0 not in kept
