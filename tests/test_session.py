"""Session: the facts of one request."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from tabi.session import Close, Drop, Session
from tabi.wire.address import parse_address


def test_what_nobody_filled_in_is_unknown() -> None:
    """A session that ends before its request has a complete record: nothing was carried, and it ended with an error."""
    session = Session(1, "socks5://127.0.0.1:1080", parse_address("192.0.2.1:5"), 10.0)
    facts = {name: getattr(session, name) for name in Session.__slots__}
    known = {
        "number",
        "listener",
        "client",
        "groups",
        "pinned",
        "silent",
        "started",
        "up",
        "down",
        "datagrams_up",
        "datagrams_down",
        "close",
    }
    assert {name for name, value in facts.items() if value is not None} == known
    assert (session.up, session.down, session.close) == (0, 0, "error")
    assert (session.datagrams_up, session.datagrams_down) == (0, 0)


def test_a_misspelt_fact_is_an_error() -> None:
    """Rooms fill in what the access log reads, and nothing else."""
    session: Any = Session(1, "", parse_address("192.0.2.1:5"), 0.0)
    with pytest.raises(AttributeError):
        session.replycode = 5


def test_how_a_session_can_end() -> None:
    """The stable words of the access log."""
    assert set(get_args(Close)) == {
        "client",
        "server",
        "idle",
        "reset",
        "denied",
        "limit",
        "fault",
        "shutdown",
        "kicked",
        "error",
    }


def test_why_a_datagram_can_go_nowhere() -> None:
    """The stable words of the access log."""
    assert get_args(Drop) == (
        *("wrong_source", "malformed", "fragment", "denied", "unresolved"),
        *("waiting", "unsolicited", "too_large", "unsent", "overflow", "limited", "inspector", "fault"),
    )


def test_the_next_request_of_a_connection_knows_its_client_only() -> None:
    """What was found out about one request does not stay for the next; who the client is does, and who watches."""
    session = Session(1, "mixed://127.0.0.1:1080", parse_address("192.0.2.1:5"), 10.0)
    fresh = {name: getattr(session, name) for name in Session.__slots__}
    for name in Session.__slots__:
        setattr(session, name, "changed")
    session.begin(2, 11.0)
    stays = {"listener", "client", "protocol", "user", "groups", "limits", "parameters", "protection", "watch"}
    assert {name for name in Session.__slots__ if getattr(session, name) == "changed"} == stays
    facts = {name: getattr(session, name) for name in Session.__slots__ if name not in stays}
    assert facts == {name: fresh[name] for name in facts} | {"number": 2, "started": 11.0}


def test_a_copy_keeps_the_facts() -> None:
    """Whoever keeps a session keeps what was true of it then."""
    session = Session(1, "mixed://127.0.0.1:1080", parse_address("192.0.2.1:5"), 10.0)
    session.command, session.up = "forward", 5
    kept = session.copy()
    session.begin(2, 11.0)
    assert (kept.number, kept.command, kept.up, kept.client) == (1, "forward", 5, session.client)


def test_whoever_wants_is_told_of_the_end() -> None:
    """Once, in the order in which they asked; the next request of the connection has nobody to tell."""
    session = Session(1, "mixed://127.0.0.1:1080", parse_address("192.0.2.1:5"), 10.0)
    told: list[str] = []
    session.over()
    session.when_over(lambda: told.append("first"))
    session.when_over(lambda: told.append("second"))
    session.over()
    session.over()
    assert told == ["first", "second"]
    assert session.ended is None


def test_whoever_wants_is_told_no_more() -> None:
    """Of the end; harmless for what was never to be told, and when it is over."""
    session = Session(1, "mixed://127.0.0.1:1080", parse_address("192.0.2.1:5"), 10.0)
    told: list[int] = []
    session.not_when_over(told.clear)
    session.when_over(told.copy)
    session.when_over(told.clear)
    session.not_when_over(told.clear)
    session.not_when_over(told.clear)
    assert session.ended == [told.copy]
