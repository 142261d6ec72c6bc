"""Observers of sessions: who is told, and what becomes of one that raises."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tabi import Server
from tabi.observe.observers import OnClose, OnOpen, SessionObserver, Watch, check_observer, methods_of, tell
from tabi.session import Session
from tabi.wire.address import Address


def session() -> Session:
    """Any."""
    return Session(1, "socks5://127.0.0.1:0", Address(ip_address("127.0.0.1"), 1), 0)


class Decides(SessionObserver):
    """Hears of one event."""

    def __init__(self) -> None:
        self.heard: list[Session] = []

    def decided(self, session: Session) -> None:
        self.heard.append(session)


def test_only_methods_that_somebody_has_are_called() -> None:
    """An observer without a method for an event is not even asked; several are told in their order."""
    one, other = Decides(), Decides()
    assert methods_of([one, SessionObserver(), other], "decided") == (one.decided, other.decided)
    assert methods_of([one, other], "ended") == ()


def test_there_is_no_watch_where_nobody_watches() -> None:
    """Begin and end are told otherwise: an observer of these alone makes no watch."""
    assert not Watch([])
    assert not Watch([OnClose(print)])
    one, told = Decides(), session()
    watch = Watch([one])
    assert watch
    for event in (watch.authenticated, watch.decided, watch.resolved, watch.connected):
        event(told)
    assert one.heard == [told]


def test_one_that_raises_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, by the name that the program knows; the next one is told all the same."""

    def fail(session: Session) -> None:
        raise ZeroDivisionError

    one, told = Decides(), session()
    tell((OnOpen(fail).connected, OnClose(fail).ended, Refuses().decided, fail, one.decided), told)
    assert one.heard == [told]
    assert [record.getMessage().partition(" failed")[0] for record in caplog.records][:3] == [
        "on_open",
        "on_close",
        "an observer of sessions",
    ]
    assert all(record.exc_info for record in caplog.records)


class Refuses(SessionObserver):
    """Fails."""

    def decided(self, session: Session) -> None:
        raise ValueError


def test_on_close_does_not_hear_of_connections_in_which_nothing_was_asked_for() -> None:
    """They have no line in the access log either."""
    heard: list[Session] = []
    told = session()
    told.silent = True
    OnClose(heard.append).ended(told)
    assert heard == []
    told.silent = False
    OnClose(heard.append).ended(told)
    assert heard == [told]


class Waits(SessionObserver):
    """Would be awaited, and is not."""

    async def ended(self, session: Session) -> None:
        """A coroutine that is lost."""


@pytest.mark.parametrize(
    ("observer", "message"),
    [
        (1, r"^observers: int, expected a tabi\.SessionObserver$"),
        (Decides, r"^observers: the class Decides itself, expected Decides\(\)$"),
        (Waits(), r"^observers: Waits\.ended is not a plain method: nothing awaits it$"),
    ],
)
def test_what_is_not_an_observer_is_told_at_the_start(observer: object, message: str) -> None:
    """A server that would lose events, or fail with its first client, is not even made."""
    with pytest.raises(TypeError, match=message):
        Server("socks5://127.0.0.1:0", observers=[observer])  # type: ignore[list-item]
    one = Decides()
    assert check_observer(one) is one
