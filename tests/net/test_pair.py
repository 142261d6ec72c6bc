"""Pairs: both ends work, a reset is one, and a stranger is no end."""

from __future__ import annotations

import socket

import pytest

from tabi.net import pair
from tabi.net.pair import accept, open_pair
from tabi.net.stream import RESET


def test_octets_and_an_end_go_both_ways() -> None:
    """And nobody else has part in it."""
    ours, theirs = open_pair()
    with ours, theirs:
        assert not ours.getblocking()
        assert not theirs.getblocking()
        assert (ours.getsockname(), ours.getpeername()) == (theirs.getpeername(), theirs.getsockname())
        for here, there in ((ours, theirs), (theirs, ours)):
            there.settimeout(5)
            here.send(b"hello")
            assert there.recv(10) == b"hello"
            here.shutdown(socket.SHUT_WR)
            assert there.recv(10) == b""


def test_a_reset_is_one() -> None:
    """What a socketpair would show as an end."""
    ours, theirs = open_pair()
    with theirs:
        theirs.settimeout(5)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        ours.close()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)


def test_strangers_are_sent_away() -> None:
    """Anybody on this machine may call between listen and accept."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        with socket.create_connection(listener.getsockname()) as stranger:
            with socket.create_connection(listener.getsockname()) as own, accept(listener, own.getsockname()) as found:
                assert found.getpeername() == own.getsockname()
            stranger.settimeout(5)
            assert stranger.recv(1) == b""


def test_many_strangers_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is no pair, and nothing stays open."""
    monkeypatch.setattr(pair, "STRANGERS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        with socket.create_connection(listener.getsockname()), pytest.raises(OSError, match="other processes"):
            accept(listener, ("127.0.0.1", 1))


def test_without_an_answer_nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end that is open already is closed again."""

    def fail(listener: socket.socket, expected: object) -> socket.socket:
        raise TimeoutError

    monkeypatch.setattr(pair, "accept", fail)
    with pytest.raises(TimeoutError):
        open_pair()
