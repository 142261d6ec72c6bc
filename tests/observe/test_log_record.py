"""What a line of the access log says of a session."""

from __future__ import annotations

import re

import msgspec

from log_sessions import KEYS, make_association, make_session, record_of
from tabi.observe.log_record import Clock, pairs
from tabi.policy.grammar import Parameters
from tabi.session import Sniffed
from tabi.wire.client_hello import ClientHello


def test_the_session_that_a_user_name_asks_for() -> None:
    """It is behind the keys of all lines, of an association too; without it there is no such key."""
    session = make_session()
    assert "session_token" not in msgspec.to_builtins(record_of(session))
    session.parameters = Parameters(labels=("de",))
    assert "session_token" not in msgspec.to_builtins(record_of(session))
    session.parameters = Parameters(session="7f3a")
    assert list(msgspec.to_builtins(record_of(session))) == [*KEYS, "session_token"]
    association = make_association()
    association.parameters = session.parameters
    found = msgspec.to_builtins(record_of(association))
    assert list(found) == [*KEYS, "session_token", "datagrams_up", "datagrams_down", "drops"]
    assert found["session_token"] == "7f3a"


def test_what_is_known_as_pairs_of_texts() -> None:
    """In the order of the keys; drops by their reasons, lists with commas, nothing of what is not known."""
    session = make_association()
    session.user, session.up, session.drops = None, 0, {"fragment": 2, "unsolicited": 1}
    found = dict(pairs(record_of(session)))
    assert [key for key in found if key in KEYS] == [
        key for key in KEYS if key not in ("user", "rule", "member", "error")
    ]
    assert (found["port"], found["up"], found["seconds"]) == ("443", "0", "1.234")
    assert (found["drops_fragment"], found["drops_unsolicited"]) == ("2", "1")
    session.drops, session.pinned = None, True
    session.sniffed = Sniffed("tls", ClientHello(0x0303, (0x1301,), (), None, (b"h2", b"http/1.1")))
    found = dict(pairs(record_of(session)))
    assert (found["alpn"], found["pinned"]) == ("h2,http/1.1", "true")
    assert "sni" not in found


def test_the_time_is_rfc_3339_with_milliseconds() -> None:
    """In UTC, cut and not rounded, so that no second has 1000 of them; one clock for many lines."""
    times = iter([0.0, 0.9999, 1.0, 1.0004, 1_767_225_599.9995, 1_767_225_600.0, 1_767_225_600.0421])
    clock = Clock(lambda: next(times))
    assert [clock() for _ in range(7)] == [
        "1970-01-01T00:00:00.000Z",
        "1970-01-01T00:00:00.999Z",
        "1970-01-01T00:00:01.000Z",
        "1970-01-01T00:00:01.000Z",
        "2025-12-31T23:59:59.999Z",
        "2026-01-01T00:00:00.000Z",
        "2026-01-01T00:00:00.042Z",
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", Clock()())
